"""What pre-training buys: AUC against the number of labelled patients, with it and without.

    python -m benchmarks.pretraining --json out.json

The curve is that of benchmarks/learning_curve.py, 1,000 patients tested and a pool of 800. The encoder is
pre-trained on the volumes of the whole pool, once per method and seed and without labels; all arms then train
the same network on the same labelled patients. Subsets: `volumes` is the image without measured facts, `all`
is params.yaml as it stands. The facts writer writes the reports.

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
from willis.pretraining.methods import METHODS

SUBSETS = {"volumes": {"use_modalities": ("image",), "image_facts": False}, "all": {}}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser, "pretraining", labels=[50, 100, 200, 400], patients=1800)
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="an arm each")
    parser.add_argument("--pretrain-epochs", type=int, help="of pre-training; params.yaml otherwise")
    arguments = parsed(parser)
    tell(curve(arguments).measure(arguments.labels, arguments.seeds), arguments.json, arguments)


def curve(arguments: argparse.Namespace) -> Curve:
    """Make the cohort and its arrays once, and the arms: from scratch, and one per method."""
    params: Params = load_params(arguments.params).model_copy(update={"report": ReportParams(writer="facts")})
    cohort = make_cohort(params, arguments)
    ingest, features = prepared(cohort, params, cohort.with_name(cohort.name.replace("cohort", "prepared")))
    train = train_params(params, arguments)
    methods = {name: _method(params, name, arguments.pretrain_epochs) for name in arguments.methods}
    work = folder_of(arguments, train.model_dump(), params.pretrain.model_dump(), arguments.pretrain_epochs)
    patients = Patients.of(ingest, features, arguments.tested)

    def arm(name: str, pretrain: PretrainParams) -> Arm:
        runs = work / "runs"
        return Arm(
            name,
            ingest,
            features,
            lambda seed: _encoder(ingest, patients, runs / f"{name}-{seed}", pretrain, seed),
        )

    arms = (Arm("scratch", ingest, features), *(arm(name, pretrain) for name, pretrain in methods.items()))
    subsets = {name: SUBSETS[name] for name in arguments.subsets}
    return Curve(work, arms, subsets, train, patients)


def _method(params: Params, name: str, epochs: int | None) -> PretrainParams:
    """The section `pretrain` with this method: values of its paper where params.yaml gives none."""
    given = params.pretrain.model_dump(exclude_unset=True) | {"method": name}
    return PretrainParams.model_validate(given | ({"epochs": epochs} if epochs else {}))


def _encoder(ingest: Path, patients: Patients, folder: Path, pretrain: PretrainParams, seed: int) -> Path:
    """The encoder of one seed; a pre-training that was finished is not done again."""
    params = pretrain.model_copy(update={"seed": seed})
    weights = pretrain_fold(ingest, frozenset(patients.tested), folder, params)
    assert weights is not None, "the method is not none"
    return weights


if __name__ == "__main__":
    main()
