"""What the page of results says of each file, in this order: heading, what it shows and cannot show."""

from dataclasses import dataclass

BEFORE_SUBSETS = (
    " Made when `lambda_subsets` was 0, `modality_dropout` .3 and `roads` shared by default: set them so to "
    "make it again."
)
"""Of files that are older than these defaults; it goes with the last of them."""


@dataclass(frozen=True)
class Entry:
    """What the page says of one file of results.

    Attributes:
        name: of the file, docs/results/NAME.json.
        title: heading.
        says: what the figures show, and what they cannot show.
        docs: the page that tells more, or that quotes it.
        quoted: that page quotes figures of a run whose file was not kept.
        module: of `benchmarks`; the name if empty.
        options: of the module, at its full size.
    """

    name: str
    title: str
    says: str
    docs: str = "docs/evaluation.md"
    quoted: bool = False
    module: str = ""
    options: str = ""

    @property
    def command(self) -> str:
        """What makes the file."""
        words = (f"python -m benchmarks.{self.module or self.name}", self.options)
        return " ".join([*filter(None, words), f"--json docs/results/{self.name}.json"])


ENTRIES = (
    Entry(
        "real_patients",
        "Poor outcome of real patients",
        "Shows how the network compares with classical rivals on the folds of 500 SOOP patients. It "
        "cannot show how well patients of another hospital, or outcomes at 90 days, are predicted: the "
        "score is the registry's.",
    ),
    Entry(
        "real_patients_labels",
        "The same on fewer patients",
        "Shows how far 100, 200 and 300 patients to learn from lie behind all of them, for the network and "
        "for its rivals. It cannot show where the curves go beyond 400." + BEFORE_SUBSETS,
        module="real_patients",
        options="--networks 1 --options --labels 100 200 300",
    ),
    Entry(
        "real_patients_options",
        "The same with options of the network",
        "Shows what an option of params.yaml is worth on the same folds, beside one network without it. It "
        "cannot show what several seeds would." + BEFORE_SUBSETS,
        module="real_patients",
        options="--networks 1 --labels",
    ),
    Entry(
        "rivals",
        "Rivals from outside, on the same real patients",
        "Shows how the network compares with other people's software on the same folds, columns and "
        "budget of CPU time. It cannot show what a rival would reach with more time or another hand."
        + BEFORE_SUBSETS,
    ),
    Entry(
        "rivals_neural",
        "Neural rivals from outside, with the time that the network takes",
        "Shows what fusilli and AutoGluon-MultiModal reach on the same folds and columns, with about the CPU "
        "time of one network. It cannot show what they would reach with weights from a hub, or on a GPU."
        + BEFORE_SUBSETS,
        module="rivals",
        options="--rivals willis fusilli autogluon --subsets all --seeds 1 --budget 120",
    ),
    Entry(
        "nihss",
        "NIHSS of real patients from image, report and age",
        "Shows how well severity follows from what the image shows and age. Reports are written from the "
        "measured facts, so it cannot show what a radiologist's report would add." + BEFORE_SUBSETS,
    ),
    Entry(
        "copenhagen",
        "Mortality of real patients, from the clinical table alone",
        "Shows how the table's branch compares with classical models of survival on the Copenhagen "
        "Stroke Study. It cannot show anything of images, of reports or of today's treatments."
        + BEFORE_SUBSETS,
    ),
    Entry(
        "ceiling",
        "What each part is worth where the truth is known",
        "Shows how near the network comes to the true probability, and what fusions, losses and "
        "modalities are worth, on synthetic patients. It cannot show that real patients follow the same "
        "law." + BEFORE_SUBSETS,
    ),
    Entry(
        "ceiling_interacting",
        "The same where modalities interact",
        "Shows what a fusion is worth where image and table act together, which the other cohort barely "
        "does. It cannot show how strongly they interact in real patients.",
        module="ceiling",
        options="--preset interacting",
    ),
    Entry(
        "missing",
        "One model for every subset of modalities",
        "Shows what it costs, on synthetic patients, that one model serves every subset. It cannot show "
        "how it fares where modalities are missing for a reason that has to do with the outcome.",
    ),
    Entry(
        "calibration",
        "What a probability and a prediction set are worth",
        "Shows, on synthetic patients and over seeds, whether probabilities and sets keep what they promise, "
        "whatever is missing and in whichever group. It cannot show that they do in another hospital.",
    ),
    Entry(
        "pretraining",
        "Pre-training along the number of labelled patients",
        "Shows what pre-training on unlabelled volumes is worth on synthetic patients. It cannot show "
        "what it is worth on the larger variety of real scans.",
    ),
    Entry(
        "writers",
        "What a report buys in labelled patients",
        "Shows what reports by the facts and by the embedded reader add to an image without measured "
        "facts, on synthetic patients. It cannot show what a radiologist's report adds." + BEFORE_SUBSETS,
    ),
    Entry(
        "reports",
        "How well and how fast the embedded reader reads",
        "Shows how well synthetic lesions are read, and the speed on one machine. It cannot show how "
        "well a hospital's studies are read.",
        docs="docs/reports.md",
        quoted=True,
    ),
    Entry(
        "cohort",
        "The synthetic cohort: its cost, and its ceilings",
        "Shows what a synthetic patient costs and what can be known of one at best. The ceilings hold "
        "for complete tables and noiseless images; they cannot show what a finite sample allows.",
        docs="docs/cohort.md",
        quoted=True,
    ),
    Entry(
        "encoders",
        "What an encoder costs",
        "Shows the CPU time of an optimisation step with each encoder. It cannot show which one predicts "
        "best.",
        docs="docs/method.md",
        quoted=True,
    ),
    Entry(
        "training_loop",
        "Training under Ray beside a bare loop",
        "Shows what Ray Train costs on one machine. It cannot show how training scales over many.",
    ),
    Entry(
        "scaling",
        "An epoch on 100,000 patients",
        "Shows, by arithmetic and simulation from one measured step, where an epoch on 8 to 64 GPUs "
        "spends its time. It cannot show what a real cluster does: no GPU was timed, and the bandwidths "
        "are assumed.",
        docs="docs/operate.md",
        quoted=True,
    ),
    Entry(
        "request_latency",
        "A request over HTTP beside the bare work",
        "Shows what the endpoint adds to preprocessing and prediction on one machine. It cannot show how "
        "it bears many callers at once.",
    ),
)
