"""What a report may say: `Findings` is what a writer decodes, `Report` is what is stored.

`Findings` is the one schema behind the prompt, guided decoding and validation. Unknown is a value of every
field; a guess is not. Severity scores, prognosis and treatment advice are forbidden, because a report is
written from the images alone and must not carry the answer into the question.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from willis.errors import ReportError

Answer = Literal["yes", "no", "unknown"]
Quality = Literal["good", "limited", "absent", "unknown"]
Side = Literal["left", "right", "bilateral", "midline", "none", "unknown"]
Territory = Literal["aca", "mca", "pca", "vertebrobasilar", "lacune", "multiple", "unknown"]
AspectsRegion = Literal[
    "caudate", "lentiform", "internal_capsule", "insula", "m1", "m2", "m3", "m4", "m5", "m6"
]
Region = Literal[
    "caudate", "lentiform", "internal_capsule", "insula", "m1", "m2", "m3", "m4", "m5", "m6",
    "thalamus", "brainstem", "cerebellum", "unknown",
]  # fmt: skip
VolumeBand = Literal["none", "under_1_ml", "1_to_10_ml", "10_to_70_ml", "over_70_ml", "unknown"]
Pattern = Literal["territorial", "lacunar", "scattered", "none", "unknown"]
Haemorrhage = Literal["none", "HI1", "HI2", "PH1", "PH2", "remote", "unknown"]

ASPECTS_REGIONS: tuple[AspectsRegion, ...] = get_args(AspectsRegion)
VOLUME_BANDS_ML: tuple[tuple[float, VolumeBand], ...] = (
    (1, "under_1_ml"), (10, "1_to_10_ml"), (70, "10_to_70_ml"), (float("inf"), "over_70_ml"),
)  # fmt: skip
"""Upper edges; 70 ml is the usual limit of a large core."""

NUMBER_FIELDS = ("num_lesions", "dwi_aspects", "midline_shift_mm", "fazekas")
"""Fields of `Findings` that are numbers; the others are words."""

MAX_FINDINGS_CHARACTERS = 900
MAX_IMPRESSION_CHARACTERS = 480
MAX_IMPRESSION_WORDS = 60

_FORBIDDEN: dict[str, str] = {
    "NIHSS": r"\bnihss\b|\bnih stroke scale\b",
    "mRS": r"\bm-?rs\b|\brankin\b",
    "prognosis": r"prognos|\boutcomes?\b|\bmortality\b|\bsurviv|(?<!inversion )(?<!inversion-)\brecover"
    r"|\bdisab|\bfunctional(ly)? independen",
    "treatment": r"\btreat|\bthromboly|\bthrombectom|\bt-?pa\b|\balteplase\b|\btenecteplase\b|\banticoag"
    r"|\bantiplatelet|\baspirin\b|\bcraniectom|\breperfusion\b|\brecanali[sz]|\bcandidate for\b",
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Findings(_Strict):
    """What can be seen in a study; the writer decodes exactly this."""

    dwi_quality: Quality = "unknown"
    adc_quality: Quality = "unknown"
    flair_quality: Quality = "unknown"
    acute_infarct: Answer = "unknown"
    laterality: Side = "unknown"
    territories: Annotated[tuple[Territory, ...], Field(max_length=5)] = ("unknown",)
    regions: Annotated[tuple[Region, ...], Field(max_length=13)] = ("unknown",)
    volume_band: VolumeBand = "unknown"
    num_lesions: int | None = Field(None, ge=0, le=99)
    pattern: Pattern = "unknown"
    dwi_aspects: int | None = Field(None, ge=0, le=10)
    low_adc: Answer = "unknown"
    dwi_flair_mismatch: Answer = "unknown"
    haemorrhage: Haemorrhage = "unknown"
    midline_shift_mm: float | None = Field(None, ge=0, le=40)
    hydrocephalus: Answer = "unknown"
    fazekas: int | None = Field(None, ge=0, le=3)
    old_infarcts: Answer = "unknown"
    microbleeds: Answer = "unknown"
    findings: str = Field("", max_length=MAX_FINDINGS_CHARACTERS)
    impression: str = Field("", max_length=MAX_IMPRESSION_CHARACTERS)

    @field_validator("territories", "regions")
    @classmethod
    def _known_or_not(cls, stated: tuple[str, ...]) -> tuple[str, ...]:
        # a model that names a region twice means it once
        named = tuple(dict.fromkeys(stated))
        if "unknown" in named and len(named) > 1:
            raise ValueError(f"{named} mixes 'unknown' with known values")
        return named

    @model_validator(mode="after")
    def _says_only_what_it_may(self) -> Self:
        refuse_forbidden(f"{self.findings} {self.impression}")
        words = len(self.impression.split())
        if words > MAX_IMPRESSION_WORDS:
            raise ReportError(f"impression has {words} words; at most {MAX_IMPRESSION_WORDS} are allowed")
        return self


class Measured(_Strict):
    """The numbers copied from the facts, never from the writer; None where nothing was measured."""

    volume_ml: float | None = None
    num_lesions: int | None = None
    adc_lesion_mm2_s: float | None = None
    dwi_ratio: float | None = None
    flair_ratio: float | None = None
    midline_shift_mm: float | None = None


class Report(_Strict):
    """A stored report: the findings, the measured numbers, and who wrote it."""

    findings: Findings
    measured: Measured = Measured()
    writer: str
    model: str
    prompt_hash: str
    temperature: float = Field(0.0, ge=0)
    seed: int = 0
    attempt: int = Field(1, ge=1)

    def text(self) -> str:
        """Return what the text encoder reads: the impression first, for long texts lose their end."""
        return f"{self.findings.impression} {self.findings.findings}".strip()


def parse_findings(answer: str | bytes) -> Findings:
    """Read a writer's JSON.

    Raises:
        ReportError: it is not JSON, breaks the schema, or says what a report must not say.
    """
    try:
        return Findings.model_validate_json(answer)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the answer"
        value = repr(first["input"])[:80]
        raise ReportError(
            f"{place} is {value}; {first['msg']} (willis/reports/schema.py: Findings)"
        ) from None


@cache
def decodable_schema() -> dict[str, Any]:
    """Return the JSON schema that guides decoding: `Findings` with every field written, in its order.

    A field left out would read as unknown; the model shall say so itself. All callers share one schema.
    """
    schema = Findings.model_json_schema()
    for field in schema["properties"].values():
        field.pop("default", None)
    return schema | {"required": list(schema["properties"])}


def refuse_forbidden(text: str) -> None:
    """Refuse severity scores, prognosis and treatment advice.

    Raises:
        ReportError: names the words and the rule.
    """
    for rule, pattern in _FORBIDDEN.items():
        if found := re.search(pattern, text, re.IGNORECASE):
            raise ReportError(
                f"a report must not speak of {rule}; found {found[0]!r} in {_around(text, found)}"
            )


def volume_band(volume_ml: float | None) -> VolumeBand:
    """Return the band of a lesion volume in ml; 0 is `none`, unknown stays unknown."""
    if volume_ml is None:
        return "unknown"
    if volume_ml <= 0:
        return "none"
    return next(band for upper, band in VOLUME_BANDS_ML if volume_ml < upper)


def report_columns(findings: Findings) -> dict[str, str | float | None]:
    """Flatten the findings for features and drift: one `r_` column per field, the prose left out."""
    columns: dict[str, str | float | None] = {}
    for name, value in findings:
        if name in ("findings", "impression"):
            continue
        columns[f"r_{name}"] = _flat(value)
    return columns


def _flat(value: Any) -> str | float | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "+".join(sorted(value)) or "none"
    return float(value)


def _around(text: str, found: re.Match[str]) -> str:
    return repr(text[max(0, found.start() - 30) : found.end() + 30])
