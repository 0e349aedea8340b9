"""The ceiling of the synthetic cohort: how well the true probability itself does on the same patients.

This is the only module that reads `derivatives/truth/`, and `evaluate` is the only step that reaches it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from willis.errors import CohortError, LeakError
from willis.evaluation.metrics import Numbers, auc, auc_of_resamples, delong_interval, percentile_interval
from willis.evaluation.results import Ceiling, Interval

if TYPE_CHECKING:
    import pandas as pd

LEAK_CONFIDENCE = 0.99
TRUTH = Path("derivatives") / "truth"


@dataclass(frozen=True)
class Truth:
    """True probabilities of some patients, in their order, and the cohort's expected ceilings."""

    full: Numbers
    image: Numbers | None
    table: Numbers | None
    expected: Mapping[str, object]


def source_of(cohort: Path) -> str:
    """Return where a cohort came from: synthetic, soop, bids or dicom.

    Raises:
        CohortError: dataset_description.json is missing or not JSON.
    """
    path = cohort / "dataset_description.json"
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CohortError(
            f"{path} cannot be read ({error}); a cohort is made by `willis cohort synthesise` or `import`"
        ) from None
    return str(described.get("Willis", {}).get("source", "bids"))


def read_truth(cohort: Path, patient_ids: list[str]) -> tuple[Truth | None, str]:
    """Read the true probabilities of `patient_ids`, or say why there are none.

    Raises:
        CohortError: a synthetic cohort whose truth lacks a patient.
    """
    source = source_of(cohort)
    if source != "synthetic":
        return None, f"the cohort's source is {source!r}: real patients have no known true probability"
    path = cohort / TRUTH / "truth.parquet"
    if not path.is_file():
        return None, f"{path.relative_to(cohort)} does not exist"
    import pandas as pd

    frame = pd.read_parquet(path).astype({"patient_id": str}).set_index("patient_id")
    absent = [name for name in patient_ids if name not in frame.index]
    if absent:
        raise CohortError(f"{path} lacks {len(absent)} test patients, first {absent[0]!r}; synthesise again")
    rows = frame.loc[patient_ids]
    return Truth(
        full=rows["p_poor"].to_numpy(np.float64),
        image=_column(rows, "p_image"),
        table=_column(rows, "p_table"),
        expected=_expected(cohort / TRUTH / "ceilings.json"),
    ), ""


def ceiling_result(truth: Truth, outcome: Numbers, headline: Numbers, counts: Numbers) -> Ceiling:
    """AUC of the truth on these patients, and the headline's paired lead over it (99 % interval)."""
    return Ceiling(
        auc=delong_interval(outcome, truth.full),
        image=None if truth.image is None else auc(outcome, truth.image),
        table=None if truth.table is None else auc(outcome, truth.table),
        lead_over_truth=paired_lead(outcome, headline, truth.full, counts, LEAK_CONFIDENCE),
        expected_full=_number(truth.expected, "full"),
        expected_image=_number(truth.expected, "image"),
        expected_table=_number(truth.expected, "table"),
        preset=str(truth.expected["preset"]) if "preset" in truth.expected else None,
    )


def paired_lead(
    outcome: Numbers, first: Numbers, second: Numbers, counts: Numbers, confidence: float
) -> Interval:
    """AUC of `first` minus AUC of `second` on the same patients, with a paired bootstrap interval."""
    draws = auc_of_resamples(outcome, first, counts) - auc_of_resamples(outcome, second, counts)
    return percentile_interval(auc(outcome, first) - auc(outcome, second), draws, confidence)


def refuse_leaks(truth: Truth, outcome: Numbers, results: Mapping[str, Numbers], counts: Numbers) -> None:
    """Compare every result with the truth.

    Args:
        truth: of the same patients.
        outcome: (n,) zeros and ones.
        results: name -> score (n,) of everything that was evaluated.
        counts: (b, n) bootstrap.

    Raises:
        LeakError: one exceeds the AUC of the true probability by a paired 99 % interval.
    """
    for name, values in results.items():
        lead = paired_lead(outcome, values, truth.full, counts, LEAK_CONFIDENCE)
        if lead.low > 0:
            raise LeakError(
                f"{name}: AUC {auc(outcome, values):.3f} exceeds that of the true probability "
                f"({auc(outcome, truth.full):.3f}) by {lead.value:.3f} (99 % interval {lead.low:.3f} to "
                f"{lead.high:.3f}) on the same {outcome.size} test patients; no predictor can know more than "
                "the truth: look for the outcome, or for test patients, in what it was trained on"
            )


def _column(rows: "pd.DataFrame", name: str) -> Numbers | None:
    return rows[name].to_numpy(np.float64) if name in rows else None


def _expected(path: Path) -> Mapping[str, object]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else None
