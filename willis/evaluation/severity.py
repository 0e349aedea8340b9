"""NIHSS from image, report and age on given folds: the network beside support vectors and boosting.

NIHSS is learned as an ordinal outcome. Of the table, age alone is shown: the rest was asked together with it.
Every prediction is out of fold; R is Pearson's correlation over all patients, averaged over repeats.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from willis.cohort.schema import CLINICAL_COLUMNS
from willis.evaluation.baselines import Design, fact_columns
from willis.evaluation.folds import validation_of, with_progress
from willis.evaluation.metrics import Numbers, bootstrap_counts, percentile_interval
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import NIHSS, Fold, Plan, known_values
from willis.evaluation.results import SeverityLead, SeverityModel, SeverityResult
from willis.params import TrainParams

if TYPE_CHECKING:
    import pandas as pd

    from willis.inference import Predictor

CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 25)
"""A grade begins at each of these points; the upper half of the scale is rare and cut coarsely."""
MODERATE = 5
KNOWN_COLUMN = "age"
OURS, RIVALS = "willis", ("support vectors", "boosting")
NUM_BOOTSTRAP = 2000
CONFIDENCE = 0.95
PENALTIES = (1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class NihssScale:
    """NIHSS in grades, as the network learns it."""

    num_cuts: int = len(CUTS)
    poor_from: int = CUTS.index(MODERATE) + 1

    def table(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Put the grade into `mrs`, moderate and worse into `poor_outcome`; keep age alone of the table."""
        points = frame[NIHSS].astype(float)
        grade = points.map(lambda value: np.searchsorted(CUTS, value, side="right"), na_action="ignore")
        hidden = [c.name for c in CLINICAL_COLUMNS if c.name in frame and c.name != KNOWN_COLUMN]
        moderate = (points >= MODERATE).astype(float).where(points.notna())
        return frame.drop(columns=hidden).assign(mrs=grade.astype(float), poor_outcome=moderate)


def evaluate_severity(
    ingest: Path, features: Path, plan: Plan, out: Path, params: TrainParams
) -> SeverityResult:
    """Train and test fold by fold; a killed run goes on.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`.
        plan: who is tested by whom, all of them with NIHSS.
        out: folder for severity.json and the predictions of every fold.
        params: section `train`.
    """
    frame = Cohort.read(ingest, features).frame.set_index("patient_id", drop=False)
    digest = _digest(plan, ingest, features, params)
    found: dict[str, dict[tuple[int, str], float]] = {name: {} for name in (OURS, *RIVALS)}
    for model, fold in with_progress([(m, f) for f in plan.folds for m in found]):
        path = out / "predictions" / f"{model.replace(' ', '_')}-{digest}" / f"{fold.name}.npy"
        if not path.exists():
            work = out / "work" / f"{digest}-{fold.name}"
            _write(path, _predicted(model, fold, frame, ingest, features, work, params))
            shutil.rmtree(work, ignore_errors=True)
        predicted = zip(fold.test, np.load(path, allow_pickle=False), strict=True)
        found[model] |= {(fold.repeat, patient): float(points) for patient, points in predicted}
    result = summarise(known_values(frame, NIHSS), found, params.seed)
    partial = out / ".severity.json.partial"
    partial.write_text(result.model_dump_json(indent=2) + "\n")
    partial.replace(out / "severity.json")
    return result


def summarise(
    points: dict[str, float], found: dict[str, dict[tuple[int, str], float]], seed: int
) -> SeverityResult:
    """Correlate predictions with NIHSS.

    Args:
        points: patient -> NIHSS.
        found: model -> (repeat, patient) -> prediction.
        seed: of the bootstrap, which draws patients and keeps them across repeats and models.
    """
    patients = sorted({patient for _, patient in found[OURS]})
    repeats = sorted({repeat for repeat, _ in found[OURS]})
    truth = np.array([points[patient] for patient in patients])
    counts = bootstrap_counts(len(patients), NUM_BOOTSTRAP, seed)
    draws, mean = {}, {}
    for model, said in found.items():
        rows = np.array([[said[repeat, patient] for patient in patients] for repeat in repeats])
        mean[model] = float(np.mean([pearson(truth, row, np.ones((1, truth.size))) for row in rows]))
        draws[model] = np.mean([pearson(truth, row, counts) for row in rows], axis=0)
    return SeverityResult(
        num_patients=len(patients),
        num_repeats=len(repeats),
        models=tuple(
            SeverityModel(name=name, r=percentile_interval(mean[name], draws[name], CONFIDENCE))
            for name in found
        ),
        leads=tuple(
            SeverityLead(
                over=name,
                r=percentile_interval(mean[OURS] - mean[name], draws[OURS] - draws[name], CONFIDENCE),
            )
            for name in RIVALS
        ),
    )


def pearson(truth: Numbers, predicted: Numbers, counts: Numbers) -> Numbers:
    """Pearson's correlation in every resample.

    Args:
        truth: (n,).
        predicted: (n,).
        counts: (b, n) how often each patient stands in each resample.

    Returns:
        (b,)
    """
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ np.stack([truth, predicted], axis=1)
    square = share @ np.stack([truth**2, predicted**2], axis=1) - mean**2
    product = share @ (truth * predicted) - mean[:, 0] * mean[:, 1]
    return np.asarray(product / np.sqrt(square[:, 0] * square[:, 1]))


def expected_points(logit: Numbers, offsets: Numbers, of_grade: Numbers) -> Numbers:
    """Mean NIHSS under the predicted distribution over grades.

    Args:
        logit: (n,).
        offsets: (K,) d_k of the cumulative logits.
        of_grade: (K + 1,) points that stand for each grade.
    """
    above = 1 / (1 + np.exp(offsets - logit[:, None]))
    return np.asarray(of_grade[0] + above @ np.diff(of_grade))


def points_of_grades(points: Numbers) -> Numbers:
    """Mean NIHSS of the training patients in each grade; where there is none, its first point."""
    grade = np.searchsorted(CUTS, points, side="right")
    first = np.array([0, *CUTS], float)
    return np.array(
        [points[grade == k].mean() if (grade == k).any() else first[k] for k in range(len(first))]
    )


def _predicted(
    model: str,
    fold: Fold,
    frame: "pd.DataFrame",
    ingest: Path,
    features: Path,
    work: Path,
    params: TrainParams,
) -> Numbers:
    train, test = frame.loc[list(fold.train)], frame.loc[list(fold.test)]
    if model == OURS:
        return _by_network(fold, train, test, ingest, features, work, params)
    return _by_rival(RIVAL_FITS[model], train, test, params.seed)


def _by_network(
    fold: Fold,
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    ingest: Path,
    features: Path,
    work: Path,
    params: TrainParams,
) -> Numbers:
    from willis.evaluation.fold_training import train_fold

    moderate = {patient: float(points >= MODERATE) for patient, points in known_values(train, NIHSS).items()}
    validation = validation_of(fold.train, moderate, params.seed)
    split = {patient: "validation" if patient in validation else "train" for patient in fold.train}
    split |= dict.fromkeys(fold.test, "test")
    scale, embeddings = NihssScale(), work.parents[1] / "embeddings"
    predictor = train_fold(ingest, features, split, work, embeddings, params, target=scale)
    cases = Cohort.read(ingest, features).patients(scale.table(test.reset_index(drop=True))).cases
    return _told(predictor, predictor.probabilities(predictor.encode(cases)), train)


def _told(predictor: "Predictor", probability: Numbers, train: "pd.DataFrame") -> Numbers:
    assert predictor.network.grades is not None, "NIHSS is learned as an ordinal outcome"
    sure = np.clip(probability, 1e-9, 1 - 1e-9)
    logit = np.log(sure / (1 - sure))
    offsets = predictor.network.grades().numpy().astype(np.float64)
    return expected_points(logit, offsets, points_of_grades(train[NIHSS].to_numpy(np.float64)))


def _by_rival(
    fit: Callable[[Numbers, Numbers, int], Any], train: "pd.DataFrame", test: "pd.DataFrame", seed: int
) -> Numbers:
    """Age and all measured facts, volumes as roots; everything is fitted on the training patients."""
    design = Design.fit(train, (KNOWN_COLUMN, *fact_columns(train)))
    fitted = fit(design.matrix(train), train[NIHSS].to_numpy(np.float64), seed)
    return np.asarray(fitted.predict(design.matrix(test)), np.float64)


def _support_vectors(columns: Numbers, points: Numbers, seed: int) -> Any:
    """RBF kernel on standardised columns; cross-validation within the training patients picks the penalty."""
    from sklearn.impute import SimpleImputer
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    whole = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), SVR())
    folds = KFold(5, shuffle=True, random_state=seed)
    return GridSearchCV(whole, {"svr__C": PENALTIES}, cv=folds, scoring="r2").fit(columns, points)


def _boosting(columns: Numbers, points: Numbers, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        learning_rate=0.05, max_iter=150, max_leaf_nodes=8, min_samples_leaf=10, random_state=seed
    )
    return model.fit(columns, points)


RIVAL_FITS: dict[str, Callable[[Numbers, Numbers, int], Any]] = dict(
    zip(RIVALS, (_support_vectors, _boosting), strict=True)
)


def _digest(plan: Plan, ingest: Path, features: Path, params: TrainParams) -> str:
    """Other folds, data or parameters are another place."""
    summed = hashlib.sha256(plan.digest().encode() + params.model_dump_json().encode())
    summed.update((ingest / "ingest.json").read_bytes())
    summed.update((features / "training_table.parquet").read_bytes())
    return summed.hexdigest()[:12]


def _write(path: Path, points: Numbers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.save(stream, points, allow_pickle=False)
    partial.replace(path)
