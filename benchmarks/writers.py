"""What a report buys: AUC against the number of labelled patients, with three writers.

    python -m benchmarks.writers --json out.json

The curve is that of benchmarks/learning_curve.py, 1,000 patients tested and a pool of 800. Every study is
reported thrice: not at all (`none`), by the measured facts (`facts`), and by `report.model` on vLLM from the
pictures alone (`llm`). The network sees the image without measured facts, so that a report is its only way to
them: `image_text`, and with the table `all`.

The default size is one for a night on two cores; `--patients 60 --tested 20 --labels 20 --seeds 1 --epochs 1`
shows that it runs.
"""

import argparse
from pathlib import Path

from benchmarks.learning_curve import (
    Arm,
    Curve,
    Patients,
    add_arguments,
    folder_of,
    make_cohort,
    parsed,
    tell,
    train_params,
)
from benchmarks.prepared import featurized, ingested
from infra.local.servers import servers
from willis.params import Params, ReportParams, load_params

SUBSETS = {
    "image_text": {"use_modalities": ("image", "text"), "image_facts": False},
    "all": {"image_facts": False},
}
WRITERS = ("none", "facts", "llm")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser, "writers", labels=[100, 200, 400, 800], patients=1800)
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    arguments = parsed(parser)
    tell(curve(arguments).measure(arguments.labels, arguments.seeds), arguments.json, arguments)


def curve(arguments: argparse.Namespace) -> Curve:
    """Make the cohort and its arrays once, and its reports once per writer."""
    params: Params = load_params(arguments.params)
    cohort = make_cohort(params, arguments)
    work = cohort.with_name(cohort.name.replace("cohort", "prepared"))
    arrays = ingested(cohort, params, work / "arrays")
    arms = tuple(Arm(writer, arrays, _features(writer, arrays, params, work / writer)) for writer in WRITERS)
    train = train_params(params, arguments)
    patients = Patients.of(arrays, arms[0].features, arguments.tested)
    subsets = {name: SUBSETS[name] for name in arguments.subsets}
    runs = folder_of(arguments, train.model_dump(), params.report.model_dump())
    return Curve(runs, arms, subsets, train, patients)


def _features(writer: str, arrays: Path, params: Params, out: Path) -> Path:
    """Have one writer report the cohort, with vLLM up while it is needed."""
    given = params.report.model_dump() | {"writer": writer, "facts_in_prompt": False}
    report = ReportParams.model_validate(given)
    with servers(out.with_name(f"{out.name}-server")) as up:
        own = params.model_copy(update={"report": report})
        return featurized(arrays, own, out, lambda: up.reader(report))


if __name__ == "__main__":
    main()
