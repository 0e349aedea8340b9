"""What pre-training buys: AUC against the number of labelled patients, with it and without.

    python -m benchmarks.pretraining --json out.json

The curve is that of benchmarks/learning_curve.py, 1,000 patients tested and a pool of 800. The encoder is
pre-trained on the volumes of the whole pool, once per seed and without labels; both arms then train the same
network on the same labelled patients. Subsets: `volumes` is the image without measured facts, `all` is
params.yaml as it stands. The facts writer writes the reports.

The default size is one for a night on two cores; `--patients 60 --tested 20 --labels 20 --seeds 1 --epochs 1
--pretrain-epochs 1` shows that it runs.
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
from benchmarks.prepared import prepared
from willis.evaluation.fold_training import pretrain_fold
from willis.params import Params, PretrainParams, ReportParams, load_params

SUBSETS = {"volumes": {"use_modalities": ("image",), "image_facts": False}, "all": {}}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser, "pretraining", labels=[50, 100, 200, 400], patients=1800)
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    parser.add_argument("--pretrain-epochs", type=int, help="of pre-training; params.yaml otherwise")
    arguments = parsed(parser)
    tell(curve(arguments).measure(arguments.labels, arguments.seeds), arguments.json)


def curve(arguments: argparse.Namespace) -> Curve:
    """Make the cohort and its arrays once, and the two arms."""
    params: Params = load_params(arguments.params).model_copy(update={"report": ReportParams(writer="facts")})
    cohort = make_cohort(params, arguments)
    ingest, features = prepared(cohort, params, cohort.with_name(cohort.name.replace("cohort", "prepared")))
    epochs = {"epochs": arguments.pretrain_epochs} if arguments.pretrain_epochs else {}
    pretrain = params.pretrain.model_copy(update={"method": "brainmvp", **epochs})
    train = train_params(params, arguments)
    work = folder_of(arguments, train.model_dump(), pretrain.model_dump())
    patients = Patients.of(ingest, features, arguments.tested)

    def encoder(seed: int) -> Path:
        return _encoder(ingest, patients, work / "runs" / f"encoder-{seed}", pretrain, seed)

    arms = (Arm("scratch", ingest, features), Arm("brainmvp", ingest, features, encoder))
    subsets = {name: SUBSETS[name] for name in arguments.subsets}
    return Curve(work, arms, subsets, train, patients)


def _encoder(ingest: Path, patients: Patients, folder: Path, pretrain: PretrainParams, seed: int) -> Path:
    """The encoder of one seed; a pre-training that was finished is not done again."""
    params = pretrain.model_copy(update={"seed": seed})
    weights = pretrain_fold(ingest, frozenset(patients.tested), folder, params)
    assert weights is not None, "the method is not none"
    return weights


if __name__ == "__main__":
    main()
