"""From latent patients to the participants.tsv that a hospital would hand over: rounded, dated, with gaps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from willis.cohort.patients import Array, Image, Table, sigmoid
from willis.cohort.physics import Scanner
from willis.cohort.schema import CLINICAL_COLUMNS

MISSING = "n/a"
FIRST_ADMISSION = datetime(2023, 1, 1, tzinfo=UTC)
ADMISSION_SPAN = timedelta(days=730)
WITHOUT_OUTCOME = 0.03
"""Share of patients lost to follow-up, at random."""

_DECIMALS = {
    "bmi": 1, "glucose_mmol_l": 1, "onset_to_admission_h": 1, "onset_to_treatment_h": 1,
}  # fmt: skip

Gap = Callable[[Table], Array]


def _share(base: float) -> Gap:
    """Missing completely at random."""
    return lambda t: np.full(len(t.age), np.log(base / (1 - base)))


GAPS: Mapping[str, Gap] = {
    "bmi": lambda t: -2.4 + 0.06 * (np.minimum(t.nihss, 20) - 6),
    "nihss": lambda t: -3.0 + 0.9 * (t.nihss <= 2),
    "prestroke_mrs": lambda t: -2.2 + 0.02 * (t.age - 70),
    "glucose_mmol_l": lambda t: -2.2 - 0.9 * t.diabetes,
    "systolic_mmhg": _share(0.06),
    "onset_to_admission_h": lambda t: -2.9 + 0.045 * np.minimum(t.onset_to_admission_h, 36),
    "atrial_fibrillation": _share(0.05),
    "diabetes": _share(0.05),
    "hypertension": _share(0.05),
    "prior_stroke": lambda t: -2.9 + 0.01 * (t.age - 70),
    "visual_field_defect": lambda t: -2.7 + 1.2 * t.reduced_consciousness,
    "reduced_consciousness": _share(0.05),
    "early_infarct_sign": lambda t: -2.1 - 0.6 * (t.onset_to_admission_h < 4),
    "dense_artery_sign": lambda t: -2.1 - 0.6 * (t.onset_to_admission_h < 4),
}
"""Log-odds that a value is missing. nihss and onset_to_admission_h go missing by their own value (not at
random: mild strokes are scored less often, unwitnessed onsets are long), the others by other columns or by
chance. None depends on the outcome, so gaps tell nothing that the full table does not."""


@dataclass(frozen=True)
class Visit:
    """When and where a patient was seen."""

    admitted: datetime
    scanned: datetime
    scanner: Scanner


def visit(rng: np.random.Generator, table: Table, image: Image, scanners: tuple[Scanner, ...]) -> Visit:
    """Draw the scanner and the times of one patient; whole minutes."""
    scanner = scanners[int(rng.integers(len(scanners)))]
    minutes = int(rng.integers(int(ADMISSION_SPAN.total_seconds() // 60)))
    wait_h = float(image.onset_to_scan_h[0] - table.onset_to_admission_h[0])
    admitted = FIRST_ADMISSION + timedelta(minutes=minutes)
    return Visit(admitted, admitted + timedelta(minutes=max(1, round(60 * wait_h))), scanner)


def participant(
    rng: np.random.Generator, patient_id: str, table: Table, seen: Visit, mrs_90d: int
) -> dict[str, str]:
    """One row of participants.tsv.

    Args:
        rng: decides which values are missing.
        patient_id: BIDS label with `sub-`.
        table: the patient's latent table; arrays of length 1.
        seen: scanner and times.
        mrs_90d: the outcome; some patients are lost to follow-up.
    """
    row = {"participant_id": patient_id}
    for column in CLINICAL_COLUMNS:
        gap = GAPS.get(column.name)
        missing = gap is not None and rng.random() < sigmoid(gap(table))[0]
        row[column.name] = MISSING if missing else _written(column.name, table)
    lost = rng.random() < WITHOUT_OUTCOME
    times = {"admission_time": seen.admitted, "scan_time": seen.scanned}
    return (
        row
        | {"site": seen.scanner.site, "scanner": seen.scanner.name}
        | {name: f"{time:%Y-%m-%dT%H:%M:%SZ}" for name, time in times.items()}
        | {"mrs_90d": MISSING if lost else str(mrs_90d)}
    )


def _written(name: str, table: Table) -> str:
    if name == "sex":
        return "F" if table.female[0] > 0 else "M"
    value = float(getattr(table, name)[0])
    if np.isnan(value):
        return MISSING
    return f"{value:.{_DECIMALS.get(name, 0)}f}"


def column_descriptions() -> dict[str, dict[str, str]]:
    """participants.json: meaning and unit of every column."""
    described = {
        column.name: {"Description": column.meaning or column.name.replace("_", " ")}
        | ({"Units": column.unit} if column.unit else {})
        for column in CLINICAL_COLUMNS
    }
    return described | {
        "site": {"Description": "hospital"},
        "scanner": {"Description": "MRI scanner"},
        "admission_time": {"Description": "UTC"},
        "scan_time": {"Description": "UTC"},
        "mrs_90d": {"Description": "modified Rankin scale 90 days after the stroke; 6 is death"},
    }
