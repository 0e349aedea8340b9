"""Logistic regression and gradient boosting on the table, on the measured facts, and on both.

Everything here is fitted on the training split alone: categories, means, scales, the penalty and the trees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from willis.cohort.schema import CLINICAL_COLUMNS
from willis.errors import CohortError
from willis.evaluation.metrics import Numbers

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["logistic", "boosting"]
KINDS: tuple[Kind, ...] = ("logistic", "boosting")
FACT_PREFIX = "f_"
_MILLILITRES = ("f_volume_ml", "f_load_")
_NOT_FACTS = ("f_event_time", "f_study_id", "f_patient_id")


@dataclass(frozen=True)
class Design:
    """How rows become numbers: numeric columns as they are, categories one column each.

    Volumes enter as square roots: they are skewed, and the published figures on real patients use roots.
    """

    numeric: tuple[str, ...]
    categories: tuple[tuple[str, str], ...]

    @classmethod
    def fit(cls, train: "pd.DataFrame", columns: Sequence[str]) -> "Design":
        """Learn from the training rows which columns vary and which categories occur."""
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        numeric, categories = [], []
        for column in columns:
            known = train[column].dropna()
            if known.nunique() < 2:
                continue
            if is_numeric_dtype(known.infer_objects()) or is_bool_dtype(known.infer_objects()):
                numeric.append(column)
            else:
                categories += [(column, str(level)) for level in sorted(known.astype(str).unique())]
        return cls(tuple(numeric), tuple(categories))

    def matrix(self, frame: "pd.DataFrame") -> Numbers:
        """Return (n, features) with NaN where a value is unknown."""
        import pandas as pd

        parts = []
        for column in self.numeric:
            values = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)
            parts.append(np.sqrt(np.maximum(values, 0)) if column.startswith(_MILLILITRES) else values)
        for column, level in self.categories:
            known = frame[column].notna().to_numpy()
            parts.append(np.where(known, (frame[column].astype(str) == level).to_numpy(float), np.nan))
        return np.stack(parts, axis=1) if parts else np.zeros((len(frame), 0))


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline; `predict` gives P(poor outcome)."""

    name: str
    design: Design
    estimator: Any

    def predict(self, frame: "pd.DataFrame") -> Numbers:
        """Return probabilities (n,) for the rows of `frame`."""
        return np.asarray(self.estimator.predict_proba(self.design.matrix(frame))[:, 1], np.float64)


def table_columns(frame: "pd.DataFrame") -> tuple[str, ...]:
    """The clinical columns that `frame` has."""
    return tuple(column.name for column in CLINICAL_COLUMNS if column.name in frame)


def fact_columns(frame: "pd.DataFrame") -> tuple[str, ...]:
    """The columns of measured facts that `frame` has."""
    return tuple(c for c in frame.columns if c.startswith(FACT_PREFIX) and c not in _NOT_FACTS)


def fit_baseline(kind: Kind, name: str, train: "pd.DataFrame", columns: Sequence[str], seed: int) -> Baseline:
    """Fit one baseline on the rows of `train` that have an outcome.

    Args:
        kind: `logistic` (penalty chosen by cross-validation inside the training rows) or `boosting`.
        name: what reports call it.
        train: training rows with `poor_outcome`; rows without one are left out.
        columns: what it may see.
        seed: of folds and subsampling.

    Raises:
        CohortError: one class only, or no column that varies.
    """
    rows = train[train["poor_outcome"].notna()]
    outcome = rows["poor_outcome"].to_numpy(np.int64)
    if len(np.unique(outcome)) < 2:
        raise CohortError(
            f"baseline {name!r} has {len(rows)} training patients of one class; both classes must occur"
        )
    design = Design.fit(rows, columns)
    if not (design.numeric or design.categories):
        raise CohortError(f"baseline {name!r}: none of {len(columns)} columns varies in the training split")
    estimator = _logistic(outcome, seed) if kind == "logistic" else _boosting(seed)
    return Baseline(name, design, estimator.fit(design.matrix(rows), outcome))


def _logistic(outcome: Numbers, seed: int) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(
        SimpleImputer(add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(max_iter=500),
    )
    smallest = int(min(np.bincount(outcome.astype(int))))
    if smallest < 5:
        return pipeline
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    grid = {"logisticregression__C": [0.01, 0.03, 0.1, 0.3]}
    return GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=folds)


def _boosting(seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    trees = GradientBoostingClassifier(
        n_estimators=150, learning_rate=0.05, max_depth=3, min_samples_leaf=8, subsample=0.7,
        max_features=0.5, random_state=seed,
    )  # fmt: skip
    return make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), trees)
