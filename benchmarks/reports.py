"""How well, and how fast, the configured model reads: real vLLM, synthetic studies whose truth is known.

    python -m benchmarks.reports --json out.json [--patients 500]

Makes a cohort (purpose benchmark; other seeds and other scanners than those the embedded reader learned
from), ingests it, serves `report.model` with vLLM, and asks it twice about every study: with the pictures
alone, and with the measured facts in the prompt. First attempts alone count. Read from the pictures, a
report is held against the truth; told the facts, against what it was told. Intervals are Wilson's.

Then the speed (benchmarks/report_speed.py): our writer against vLLM's own client on the same server, guided
decoding against free, `transformers.generate` in the server's absence, and the server's peak memory.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from benchmarks.prepared import ingested
from benchmarks.report_speed import peak_memory_gb, rates, transformers_rate
from benchmarks.results import write_results
from infra.local.processes import free_port
from willis.cohort.lesions import GRID
from willis.cohort.synthetic import SPACE, TRUTH, synthesise
from willis.imaging import lesion as lesions
from willis.imaging.lesion import Facts, Signals
from willis.imaging.territory import default_map
from willis.params import CohortParams, Params, ReportParams, load_params
from willis.reports.client import LanguageModelWriter
from willis.reports.grounding import ground
from willis.reports.measured import measured_findings
from willis.reports.schema import Findings, volume_band
from willis.reports.server import server_process
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Reading, Study, read_study, run
from willis.settings import Settings, settings

SEED = 4711
WITHOUT_INFARCT = 0.3
CONFIDENCE = 0.95
NUM_TIMED, ROUNDS = 128, 3
MODES = {"images": False, "facts": True}
Right = Callable[[Findings, Facts], bool]


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    metric: str
    hits: int
    total: int

    def row(self, task: str, model: str, subset: str, seconds: float) -> dict[str, object]:
        """One row of the benchmark's output."""
        low, high = (
            binomtest(self.hits, self.total).proportion_ci(CONFIDENCE, method="wilson")
            if self.total
            else (None, None)
        )
        return {
            "task": task, "model": model, "subset": subset, "metric": self.metric,
            "mean": self.hits / self.total if self.total else None, "low": low, "high": high,
            "num_patients": self.total, "seconds": seconds,
        }  # fmt: skip


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--work", type=Path, default=Path("build/bench/reports"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    work = arguments.work.resolve()
    studies, truth = prepare(params, work, arguments.patients)
    rows = measure(studies, truth, params.report, work)
    _show(rows)
    if arguments.json:
        write_results(arguments.json, rows, arguments)


def prepare(params: Params, work: Path, num_patients: int) -> tuple[IngestedStudies, list[Facts]]:
    """Make and ingest the cohort once; return its studies and what is true of each."""
    cohort = work / f"cohort-{num_patients}"
    asked = {"num_patients": num_patients, "seed": SEED, "without_infarct": WITHOUT_INFARCT}
    synthesise(cohort, CohortParams.model_validate(asked), purpose="benchmark")
    studies = IngestedStudies.open(ingested(cohort, params, work / f"arrays-{num_patients}"))
    patients = studies.table["patient_id"].astype(str)
    return studies, [true_facts(cohort, patient) for patient in patients]


def true_facts(cohort: Path, patient: str) -> Facts:
    """Measure the true mask of a patient of a benchmark cohort."""
    path = cohort / TRUTH / patient / f"{patient}_{SPACE}_desc-lesion_mask.nii.gz"
    mask = np.asarray(nib.load(path).dataobj) > 0  # type: ignore[attr-defined]
    found = lesions.gather(mask, GRID.affine, GRID.voxel_ml, 0.0)
    return lesions.measure(found, default_map(), Signals())


def measure(
    studies: IngestedStudies, truth: list[Facts], params: ReportParams, work: Path
) -> list[dict[str, object]]:
    """Serve the model, let it read every study in both modes, and count."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    # Rounds ask the same again; what vLLM remembers of a prompt would make the later ones too fast.
    options = f"{settings().vllm_options} --no-enable-prefix-caching"
    given = settings().model_copy(update={"report_url": url, "vllm_options": options})
    rows: list[dict[str, object]] = []
    views = [studies.study(index) for index in range(len(studies))]
    Console(stderr=True).print("starting vLLM, about a minute ...")
    with server_process(params, given, log=work / "vllm.log") as process:
        for mode, told in MODES.items():
            writer = LanguageModelWriter(params.model_copy(update={"facts_in_prompt": told}), given)
            started = time.perf_counter()
            readings = run(writer, _read_all(views, writer, params.concurrency, mode))
            seconds = time.perf_counter() - started
            counts = _told(readings, studies) if told else _read(readings, truth)
            rows += [
                count.row("reading", writer.model, mode, seconds) for count in [*counts, _valid(readings)]
            ]
            rows.append(_row("speed", writer.model, mode, "reports_per_s", len(views) / seconds, len(views)))
            if not told:
                rows.append(_shuffled(readings, studies).row("shuffled", writer.model, mode, seconds))
        rows += _rates(studies, params, given, work)
        rows.append(_row("memory", writer.model, "server", "peak_gb", peak_memory_gb(process), 1))
    timed = _timed(studies)
    rate = transformers_rate(timed, params)
    rows.append(_row("speed", writer.model, "transformers", "reports_per_s", rate, len(timed)))
    return rows


def _timed(studies: IngestedStudies) -> list[Study]:
    return [studies.study(index) for index in range(min(NUM_TIMED, len(studies)))]


def _rates(
    studies: IngestedStudies, params: ReportParams, given: Settings, work: Path
) -> list[dict[str, object]]:
    """Reports per second of each way to ask, and the two ratios that count."""
    told, timed = params.model_copy(update={"facts_in_prompt": True}), _timed(studies)
    writer = LanguageModelWriter(told, given)

    def write_all() -> None:
        run(writer, _read_all(timed, writer, told.concurrency, "timed"))

    found = rates(timed, told, given, work, write_all, ROUNDS)
    ratios = {
        "writer_over_client": found["writer"] / found["client"],
        "guided_over_free": found["client"] / found["free"],
    }
    return [
        *(_row("speed", writer.model, way, "reports_per_s", rate, len(timed)) for way, rate in found.items()),
        *(_row("speed", writer.model, "ratio", name, ratio, len(timed)) for name, ratio in ratios.items()),
    ]


async def _read_all(
    studies: Sequence[Study], writer: LanguageModelWriter, concurrency: int, mode: str
) -> list[Reading]:
    """One attempt per study; nothing is stored, so that speed is the model's."""
    from rich.progress import track

    readings: dict[int, Reading] = {}
    queue = iter(track(range(len(studies)), f"reading ({mode})", console=Console(stderr=True)))

    async def work() -> None:
        for index in queue:
            readings[index] = await read_study(studies[index], writer, max_attempts=1)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return [readings[index] for index in range(len(studies))]


def _valid(readings: list[Reading]) -> Count:
    return Count("valid", sum(reading.report is not None for reading in readings), len(readings))


def _read(readings: list[Reading], truth: list[Facts]) -> list[Count]:
    """Hold reports against the truth; a study without a valid report counts as wrong."""
    pairs = [(reading.report.findings if reading.report else None, facts)
             for reading, facts in zip(readings, truth, strict=True)]  # fmt: skip
    ill = [(said, facts) for said, facts in pairs if facts.infarct_present]
    well = [(said, facts) for said, facts in pairs if not facts.infarct_present]

    def count(metric: str, among: list[tuple[Findings | None, Facts]], right: Right) -> Count:
        return Count(
            metric, sum(said is not None and right(said, facts) for said, facts in among), len(among)
        )

    one_side = [pair for pair in ill if pair[1].laterality in ("left", "right")]
    one_artery = [pair for pair in ill if len(measured_findings(pair[1]).territories) == 1]
    return [
        count("sensitivity", ill, lambda said, _: said.acute_infarct == "yes"),
        count("specificity", well, lambda said, _: said.acute_infarct == "no"),
        count("laterality", one_side, lambda said, facts: said.laterality == facts.laterality),
        count("territory", one_artery, _same_territory),
        count("volume_band", ill, lambda said, facts: said.volume_band == volume_band(facts.volume_ml)),
    ]


def _same_territory(said: Findings, facts: Facts) -> bool:
    return said.territories == measured_findings(facts).territories


def _told(readings: list[Reading], studies: IngestedStudies) -> list[Count]:
    """Hold reports against the facts in their prompts: every field, every number in the prose."""
    agree = sum(reading.report is not None and not reading.flagged for reading in readings)
    stated = [
        reading.report.findings == _with_told(reading.report.findings, facts)
        for reading, facts in zip(readings, studies.facts, strict=True)
        if reading.report
    ]
    return [
        Count("no_contradiction", agree, len(readings)),
        Count("all_facts_repeated", sum(stated), len(readings)),
    ]


def _with_told(said: Findings, facts: Facts) -> Findings:
    known = measured_findings(facts).model_dump(exclude_defaults=True)
    return said.model_copy(update={name: getattr(measured_findings(facts), name) for name in known})


def _shuffled(readings: list[Reading], studies: IngestedStudies) -> Count:
    """Ground each report against the next study's facts where side or territory differ."""
    caught = total = 0
    for index, reading in enumerate(readings):
        own, other = studies.facts[index], studies.facts[(index + 1) % len(readings)]
        if reading.report is None or (own.laterality, own.territory) == (other.laterality, other.territory):
            continue
        total += 1
        caught += bool(ground(reading.report.findings, other).contradictions)
    return Count("caught", caught, total)


def _row(task: str, model: str, subset: str, metric: str, value: float, num: int) -> dict[str, object]:
    return {
        "task": task, "model": model, "subset": subset, "metric": metric, "mean": value,
        "low": None, "high": None, "num_patients": num,
    }  # fmt: skip


def _show(rows: list[dict[str, object]]) -> None:
    table = Table(*("task", "subset", "metric", "mean", "interval", "n"))
    for line in _lines(rows):
        table.add_row(*line)
    Console().print(table)


def _lines(rows: list[dict[str, object]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        mean, low, high = row["mean"], row["low"], row["high"]
        interval = "" if low is None else f"[{low:.3f}, {high:.3f}]"
        yield (
            str(row["task"]), str(row["subset"]), str(row["metric"]),
            "-" if mean is None else f"{mean:.3f}", interval, str(row["num_patients"]),
        )  # fmt: skip


if __name__ == "__main__":
    main()
