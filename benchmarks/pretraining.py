"""What pre-training buys: AUC against the number of labelled patients, with it and without.

    python -m benchmarks.pretraining --json out.json

One synthetic cohort (purpose benchmark): 1,000 patients are tested; of the other 800 the first 50, 100, 200
or 400 of a seed's order have a label, 15 % of them for early stopping. The encoder is pre-trained on the
volumes of all 800, once per seed and without labels; both arms then train the same network on the same
labelled patients. Subsets: `volumes` is the image without measured facts, `all` is params.yaml as it stands.

AUC is the mean over seeds. Intervals, those of the differences too, resample the tested patients, who are
the same for every arm, number of labels and seed; they hold for these seeds. Killed, it goes on with the
first (labels, arm, subset, seed) that is missing. The default size is one for a night on two cores;
`--patients 60 --tested 20 --labels 20 --seeds 1 --epochs 1 --pretrain-epochs 1` shows that it runs.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.prepared import prepared
from infra.local.stages import folder_made, key_of, write_whole
from willis.cohort.synthetic import synthesise
from willis.evaluation.fold_training import pretrain_fold, train_fold
from willis.evaluation.folds import validation_of
from willis.evaluation.metrics import Numbers, auc, auc_of_resamples, bootstrap_counts, percentile_interval
from willis.evaluation.patients import Cohort
from willis.params import Params, PretrainParams, TrainParams, load_params
from willis.provenance import module_digests

SCRATCH, TAUGHT = "scratch", "brainmvp"
SUBSETS = ("volumes", "all")
NUM_BOOTSTRAP = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """One training run."""

    labels: int
    arm: str
    subset: str
    seed: int

    @property
    def task(self) -> str:
        """Name of the task in the rows."""
        return f"poor_outcome_{self.labels}_labels"

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.task}-{self.arm}-{self.subset}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all runs share.

    Attributes:
        pool: patients who may be learned from.
        tested: patients who are tested.
        outcome: patient -> 1 poor, 0 good.
    """

    ingest: Path
    features: Path
    work: Path
    train: TrainParams
    pretrain: PretrainParams
    pool: tuple[str, ...]
    tested: tuple[str, ...]
    outcome: dict[str, float]

    def split(self, cell: Cell) -> dict[str, str]:
        """Who is in which split of one run; both arms have the same."""
        order = np.random.default_rng([cell.seed, 1]).permutation(len(self.pool))
        labelled = tuple(self.pool[k] for k in order[: cell.labels])
        validation = validation_of(labelled, self.outcome, cell.seed)
        split = {patient: "validation" if patient in validation else "train" for patient in labelled}
        return split | dict.fromkeys(self.tested, "test")


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = _arguments()
    study = _study(arguments)
    cells = [
        Cell(labels, arm, subset, seed)
        for seed in range(arguments.seeds)
        for subset in arguments.subsets
        for labels in arguments.labels
        for arm in (SCRATCH, TAUGHT)
    ]
    for done, cell in enumerate(_missing(study, cells), start=1):
        print(f"{cell.name} ({done})", flush=True)
        _run(study, cell)
    rows = rows_of(study, cells)
    _show(rows)
    print(f"{_cpu_hours(study, cells):.2f} CPU hours, earlier starts of the same runs included")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def rows_of(study: Study, cells: list[Cell]) -> list[dict[str, object]]:
    """One row per number of labels, subset and arm, and one per paired difference."""
    outcome = np.array([study.outcome[patient] for patient in study.tested])
    counts = bootstrap_counts(outcome.size, NUM_BOOTSTRAP, seed=7)
    rows: list[dict[str, object]] = []
    for task, subset in dict.fromkeys((cell.task, cell.subset) for cell in cells):
        found: dict[str, tuple[float, Numbers]] = {}
        seconds: dict[str, float] = {}
        for arm in (SCRATCH, TAUGHT):
            runs = [cell for cell in cells if (cell.task, cell.subset, cell.arm) == (task, subset, arm)]
            found[arm] = _mean_area(study, runs, outcome, counts)
            seconds[arm] = sum(_record(study, cell)["seconds"] for cell in runs)
        found[f"{TAUGHT} over {SCRATCH}"] = (
            found[TAUGHT][0] - found[SCRATCH][0], found[TAUGHT][1] - found[SCRATCH][1]
        )  # fmt: skip
        seconds[f"{TAUGHT} over {SCRATCH}"] = seconds[TAUGHT] + seconds[SCRATCH]
        for model, (value, draws) in found.items():
            it = percentile_interval(value, draws, CONFIDENCE)
            metric = "auc_lead" if " over " in model else "auc"
            rows.append({
                "task": task, "model": model, "subset": subset, "metric": metric, "mean": it.value,
                "low": it.low, "high": it.high, "num_patients": outcome.size, "seconds": seconds[model],
            })  # fmt: skip
    return rows


def _mean_area(study: Study, runs: list[Cell], outcome: Numbers, counts: Numbers) -> tuple[float, Numbers]:
    """Mean AUC over seeds, and the same in every resample of patients."""
    scores = []
    for cell in runs:
        predicted = pd.read_parquet(_path(study, cell)).set_index("patient_id")["p"]
        scores.append(predicted.loc[list(study.tested)].to_numpy(np.float64))
    value = float(np.mean([auc(outcome, score) for score in scores]))
    return value, np.mean([auc_of_resamples(outcome, score, counts) for score in scores], axis=0)


def _run(study: Study, cell: Cell) -> None:
    """Pre-train where it is asked for and not done yet, train, predict, and leave both files whole."""
    started, before = time.perf_counter(), time.process_time()
    weights = _encoder(study, cell.seed) if cell.arm == TAUGHT else None
    work = study.work / "runs" / f"{cell.name}.part"
    split = study.split(cell)
    predictor = train_fold(
        study.ingest,
        study.features,
        split,
        work,
        study.work / "embeddings",
        _params(study.train, cell),
        weights,
    )
    cohort = Cohort.read(study.ingest, study.features)
    rows = cohort.frame[cohort.frame["patient_id"].isin(study.tested)].reset_index(drop=True)
    p = predictor.probabilities(predictor.encode(cohort.patients(rows).cases))
    path = _path(study, cell)
    partial = path.with_suffix(".partial")
    rows[["patient_id"]].assign(p=p).to_parquet(partial, index=False)
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
    write_whole(path.with_suffix(".json"), json.dumps(spent))
    partial.replace(path)
    shutil.rmtree(work, ignore_errors=True)


def _encoder(study: Study, seed: int) -> Path:
    """The encoder of one seed; a pre-training that was finished is not done again."""
    params = study.pretrain.model_copy(update={"seed": seed})
    folder = study.work / "runs" / f"encoder-{seed}"
    weights = pretrain_fold(study.ingest, frozenset(study.tested), folder, params)
    assert weights is not None, "the method is not none"
    return weights


def _params(train: TrainParams, cell: Cell) -> TrainParams:
    volumes = {"use_modalities": ("image",), "image_facts": False} if cell.subset == "volumes" else {}
    return train.model_copy(update={"seed": cell.seed, **volumes})


def _missing(study: Study, cells: list[Cell]) -> Iterator[Cell]:
    yield from (cell for cell in cells if not _path(study, cell).exists())


def _path(study: Study, cell: Cell) -> Path:
    return study.work / "runs" / f"{cell.name}.parquet"


def _record(study: Study, cell: Cell) -> dict[str, float]:
    found: dict[str, float] = json.loads(_path(study, cell).with_suffix(".json").read_text())
    return found


def _cpu_hours(study: Study, cells: list[Cell]) -> float:
    return sum(_record(study, cell)["cpu_seconds"] for cell in cells) / 3600


def _study(arguments: argparse.Namespace) -> Study:
    """Make the cohort and its arrays once; runs of other parameters or code lie in a folder of their own."""
    params: Params = load_params(arguments.params)
    work = arguments.work.resolve()
    section = params.cohort.model_copy(
        update={"num_patients": arguments.patients, "seed": 31, "preset": arguments.preset}
    )
    cohort = work / f"cohort-{arguments.preset}-{arguments.patients}"
    folder_made(
        cohort,
        key_of(section.model_dump(), module_digests("willis.cohort.synthetic")),
        lambda: synthesise(cohort, section, purpose="benchmark"),
    )
    ingest, features = prepared(cohort, params, work / f"prepared-{arguments.preset}-{arguments.patients}")
    changed = {"method": TAUGHT} | (
        {"epochs": arguments.pretrain_epochs} if arguments.pretrain_epochs else {}
    )
    pretrain = params.pretrain.model_copy(update=changed)
    train = params.train.model_copy(update={"epochs": arguments.epochs} if arguments.epochs else {})
    frame = Cohort.read(ingest, features).frame
    known = frame[frame["poor_outcome"].notna()]
    outcome = dict(zip(known["patient_id"].astype(str), known["poor_outcome"].astype(float), strict=True))
    patients = sorted(outcome)
    code = module_digests("willis.evaluation.fold_training")
    key = key_of(
        train.model_dump(),
        pretrain.model_dump(),
        code,
        arguments.tested,
        arguments.patients,
        arguments.preset,
    )
    runs = work / key
    (runs / "runs").mkdir(parents=True, exist_ok=True)
    tested, pool = tuple(patients[: arguments.tested]), tuple(patients[arguments.tested :])
    return Study(ingest, features, runs, train, pretrain, pool, tested, outcome)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--work", type=Path, default=Path("build/bench/pretraining"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--preset", default="published", help="of the synthetic cohort")
    parser.add_argument("--patients", type=int, default=1800, help="of the cohort")
    parser.add_argument("--tested", type=int, default=1000, help="of them; the others are the pool")
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of training; params.yaml otherwise")
    parser.add_argument("--pretrain-epochs", type=int, help="of pre-training; params.yaml otherwise")
    arguments = parser.parse_args()
    if max(arguments.labels) > arguments.patients - arguments.tested:
        parser.error("--labels asks for more patients than the pool has: --patients less --tested")
    return arguments


def _show(rows: list[dict[str, object]]) -> None:
    table = Table("task", "subset", "model", "AUC", "95 % interval")
    for row in rows:
        words = [str(row[name]) for name in ("task", "subset", "model")]
        table.add_row(*words, f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
