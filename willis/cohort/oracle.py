"""The boosted oracle: what gradient boosting learns from 100,000 patients whose truth it is told."""

from typing import Any

import numpy as np
import numpy.typing as npt

from willis.cohort.outcome import Preset, frailty, probability
from willis.cohort.patients import Array, Image, Table

Singles = npt.NDArray[np.float32]

_BINS = 200


def oracle_scores(learn: tuple[Image, Table], score: tuple[Image, Table], preset: Preset) -> dict[str, Array]:
    """Fit on one set of patients, score another.

    Args:
        learn: patients to fit on, with their true probabilities.
        score: other patients.
        preset: which coefficients the truth has.

    Returns:
        Scores of the second set by image, table, full and additive, each (N,).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # one thread: the same sums in the same order, and no fight with the processes beside
    with threadpool_limits(1):
        return _fit_and_score(learn, score, preset)


def _fit_and_score(
    learn: tuple[Image, Table], score: tuple[Image, Table], preset: Preset
) -> dict[str, Array]:
    chance = probability(learn[1], learn[0], preset)
    images, tables = image_columns(learn[0]), table_columns(learn[1])
    split = images.shape[1]
    seen, new = _binned(
        np.hstack([images, tables]), np.hstack([image_columns(score[0]), table_columns(score[1])])
    )
    parts = (
        ("image", slice(split), 80, 31),
        ("table", slice(split, None), 80, 31),
        ("full", slice(None), 200, 63),
    )
    out = {
        name: _regress(seen[:, part], chance, trees, leaves).predict(new[:, part])
        for name, part, trees, leaves in parts
    }
    groups = [set(range(split)), set(range(split, seen.shape[1]))]
    out["additive"] = _classify(seen, chance, groups).decision_function(new)
    return out


def _binned(seen: Singles, new: Singles) -> tuple[Singles, Singles]:
    """Both sets as numbers of at most 255 equally filled bins of the first; NaN stays NaN.

    Boosting bins its columns anyway; doing it once for four models saves half of their time.
    """
    out = []
    edges = [np.unique(np.nanquantile(column, np.linspace(0, 1, _BINS)[1:-1])) for column in seen.T]
    for values in (seen, new):
        numbers = [
            np.searchsorted(edge, column, side="right") for edge, column in zip(edges, values.T, strict=True)
        ]
        out.append(np.where(np.isnan(values), np.nan, np.stack(numbers, axis=1)).astype(np.float32))
    return out[0], out[1]


def image_columns(image: Image) -> Singles:
    """All that the image tells, (N, 12)."""
    columns = (
        np.where(image.infarct > 0, image.territory, -1), image.left, np.log1p(image.volume_ml),
        image.num_lesions, image.tract, image.eloquence, np.log(image.white_ml), image.atrophy,
        image.old_ml > 0, image.haemorrhage, np.log(image.onset_to_scan_h), frailty(image),
    )  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def table_columns(table: Table) -> Singles:
    """All that the table tells, (N, 20): its columns, and NIHSS in points."""
    return np.stack([*vars(table).values(), table.nihss], axis=1).astype(np.float32)


def _regress(columns: Singles, chance: Array, trees: int, leaves: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=trees, learning_rate=0.2, max_leaf_nodes=leaves, min_samples_leaf=60, random_state=0
    )
    return model.fit(columns, chance)


def _classify(columns: Singles, chance: Array, groups: list[set[int]]) -> Any:
    """Boosting on log-odds in which image and table columns never meet within a tree.

    Each patient stands twice, poor and good, weighted by the truth.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.15,
        max_leaf_nodes=31,
        min_samples_leaf=60,
        interaction_cst=groups,
        random_state=0,
    )
    outcome = np.repeat([1, 0], len(chance))
    return model.fit(
        np.vstack([columns, columns]), outcome, sample_weight=np.concatenate([chance, 1 - chance])
    )
