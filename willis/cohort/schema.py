"""The clinical table in Willis's own words: one column per fact known without the MRI, with unit and range.

This module is what every other part of the platform means by "the table": ingest maps a source's column
names onto it, Feast serves it, the model encodes it, and the endpoint accepts it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Sequence = Literal["dwi", "adc", "flair", "lesion"]
SEQUENCES: tuple[Sequence, ...] = get_args(Sequence)
MODALITIES = ("image", "text", "table")
SPLITS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class Column:
    """One clinical column: its name (with the unit in it), kind, closed range and meaning."""

    name: str
    kind: Literal["number", "flag", "category"]
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    meaning: str = ""
    hint: str = ""


CLINICAL_COLUMNS: tuple[Column, ...] = (
    Column("age", "number", 18, 120, "years", "age at admission; '89+' is read as 89"),
    Column("sex", "category", meaning="F or M"),
    Column("bmi", "number", 10, 80, "kg/m^2", "body mass index"),
    Column("nihss", "number", 0, 42, "points", "NIH Stroke Scale at admission"),
    Column("prestroke_mrs", "number", 0, 5, "points", "modified Rankin scale before the stroke"),
    Column(
        "glucose_mmol_l", "number", 1.5, 45, "mmol/l", "glucose at admission",
        hint="these look like mg/dl: divide by 18.02",
    ),
    Column("systolic_mmhg", "number", 50, 300, "mmHg", "systolic blood pressure at admission"),
    Column("onset_to_admission_h", "number", 0, 336, "h", "from last seen well to admission"),
    Column("onset_to_treatment_h", "number", 0, 48, "h", "from last seen well to reperfusion treatment"),
    Column("atrial_fibrillation", "flag", meaning="known or found at admission"),
    Column("diabetes", "flag"),
    Column("hypertension", "flag"),
    Column("prior_stroke", "flag", meaning="a stroke before this one"),
    Column("visual_field_defect", "flag", meaning="item of ASTRAL"),
    Column("reduced_consciousness", "flag", meaning="item of ASTRAL"),
    Column("early_infarct_sign", "flag", meaning="on admission CT; item of DRAGON"),
    Column("dense_artery_sign", "flag", meaning="on admission CT; item of DRAGON"),
    Column("thrombolysis", "flag"),
    Column("thrombectomy", "flag"),
)  # fmt: skip

NUMBERS = tuple(c.name for c in CLINICAL_COLUMNS if c.kind == "number")
FLAGS = tuple(c.name for c in CLINICAL_COLUMNS if c.kind == "flag")
CATEGORIES = tuple(c.name for c in CLINICAL_COLUMNS if c.kind == "category")

OUTCOME_LOW, OUTCOME_HIGH, POOR_FROM = 0, 6, 3

ADMINISTRATIVE_COLUMNS = ("patient_id", "site", "scanner", "admission_time", "scan_time")
"""Columns that place a row (whose, where, when); subgroup and event-time material, never model input."""

_FLAG = Field(None, ge=0, le=1)


def _number(name: str) -> float | None:
    column = next(c for c in CLINICAL_COLUMNS if c.name == name)
    field: float | None = Field(
        None, ge=column.low, le=column.high, description=f"{column.meaning} [{column.unit}]"
    )
    return field


class ClinicalRow(BaseModel):
    """One patient's table at admission; None means not known, which is normal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    age: float | None = _number("age")
    sex: Literal["F", "M"] | None = None
    bmi: float | None = _number("bmi")
    nihss: float | None = _number("nihss")
    prestroke_mrs: float | None = _number("prestroke_mrs")
    glucose_mmol_l: float | None = _number("glucose_mmol_l")
    systolic_mmhg: float | None = _number("systolic_mmhg")
    onset_to_admission_h: float | None = _number("onset_to_admission_h")
    onset_to_treatment_h: float | None = _number("onset_to_treatment_h")
    atrial_fibrillation: float | None = _FLAG
    diabetes: float | None = _FLAG
    hypertension: float | None = _FLAG
    prior_stroke: float | None = _FLAG
    visual_field_defect: float | None = _FLAG
    reduced_consciousness: float | None = _FLAG
    early_infarct_sign: float | None = _FLAG
    dense_artery_sign: float | None = _FLAG
    thrombolysis: float | None = _FLAG
    thrombectomy: float | None = _FLAG
    admission_time: AwareDatetime | None = Field(None, description="when the row became known")

    def is_empty(self) -> bool:
        """True when nothing clinical is known: the table modality is absent."""
        return all(getattr(self, column.name) is None for column in CLINICAL_COLUMNS)
