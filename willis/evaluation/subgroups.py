"""Groups of test patients in which a model may do better or worse than on average."""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from willis.evaluation.calibration import brier
from willis.evaluation.metrics import Numbers, delong_interval
from willis.evaluation.results import Subgroup

if TYPE_CHECKING:
    import pandas as pd

AGE_EDGES = (65.0, 80.0)
NIHSS_EDGES = (5.0, 16.0)
MIN_PER_CLASS = 5

Group: TypeAlias = tuple[str, str, npt.NDArray[np.bool_]]
"""Name of the grouping, level in it, and who belongs to it."""


def groups_of(frame: "pd.DataFrame") -> tuple[Group, ...]:
    """Return every group of the rows of `frame`: age band, sex, NIHSS band, scanner, territory.

    Patients whose value is unknown form the level `unknown`, so that every grouping covers everybody.
    """
    groups: list[Group] = []
    for name, column, edges in (("age", "age", AGE_EDGES), ("nihss", "nihss", NIHSS_EDGES)):
        if column in frame:
            groups += _banded(name, frame[column].to_numpy(np.float64, na_value=np.nan), edges)
    for name, column in (("sex", "sex"), ("scanner", "scanner"), ("territory", "f_territory")):
        if column in frame:
            groups += _by_level(name, frame[column])
    return tuple(groups)


def subgroup_results(
    groups: tuple[Group, ...], outcome: Numbers, probability: Numbers, confidence: float
) -> tuple[Subgroup, ...]:
    """Measure each group that has members.

    The AUC is None in a group with fewer than five patients of either class: its interval would span nearly
    everything.
    """
    return tuple(
        _measure(name, level, outcome[member], probability[member], confidence)
        for name, level, member in groups
        if member.any()
    )


def _measure(name: str, level: str, outcome: Numbers, probability: Numbers, confidence: float) -> Subgroup:
    num_poor = int(outcome.sum())
    enough = min(num_poor, outcome.size - num_poor) >= MIN_PER_CLASS
    return Subgroup(
        group=name,
        level=level,
        num_patients=outcome.size,
        num_poor=num_poor,
        auc=delong_interval(outcome, probability, confidence) if enough else None,
        brier=brier(outcome, probability),
        mean_probability=float(probability.mean()),
    )


def _banded(name: str, values: Numbers, edges: tuple[float, float]) -> list[Group]:
    low, high = edges
    return [
        (name, f"below {low:g}", values < low),
        (name, f"{low:g} to below {high:g}", (values >= low) & (values < high)),
        (name, f"{high:g} and above", values >= high),
        (name, "unknown", np.isnan(values)),
    ]


def _by_level(name: str, values: "pd.Series[str]") -> list[Group]:
    named = values.astype(object).where(values.notna(), "unknown").astype(str).to_numpy()
    return [(name, str(level), np.asarray(named == level)) for level in sorted(set(named))]
