"""Requests and answers of the endpoint: the contract that openapi.json freezes."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from willis.casework import ClinicalRow, Facts, Findings, Report

NOTICE = "For research only. Not a medical device; not for diagnosis or treatment of any patient."
FILE_PARTS = ("dwi", "adc", "flair", "lesion", "planes")
MAX_REPORT_CHARACTERS = 8000
_PROBABILITY = "Calibrated P(mRS 3-6), at the time that `outcome` of /v1/model tells."

PatientId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
ObjectKey = Annotated[str, StringConstraints(min_length=1, max_length=900)]
ReportText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REPORT_CHARACTERS)]
Modality = Literal["image", "text", "table"]
Outcome = Literal["good", "poor"]


class Message(BaseModel):
    """Frozen, and closed to fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectReferences(Message):
    """Keys in the operator's object store, one per volume, instead of files in the request."""

    dwi: ObjectKey | None = None
    adc: ObjectKey | None = None
    flair: ObjectKey | None = None
    lesion: ObjectKey | None = None
    planes: ObjectKey | None = None


class PredictionRequest(Message):
    """What is asked, beside the files. At least one of image, report and table must be there."""

    patient_id: PatientId | None = Field(
        None,
        description="Stored as a keyed hash only. Without `clinical`, the table is read from the feature "
        "store under this id; nothing but the table is read.",
    )
    clinical: ClinicalRow | None = Field(None, description="The table at admission; null means not known.")
    objects: ObjectReferences | None = Field(None, description="Volumes in the operator's object store.")
    report: Findings | ReportText | None = Field(
        None, description="The MRI report, as findings or as text; absent, the endpoint writes one."
    )
    space: Literal["native", "mni152"] = Field(
        "native", description="mni152: the volumes lie in MNI152 space and are not registered again."
    )
    site: Label | None = Field(None, description="Kept in the log for subgroups; never model input.")
    scanner: Label | None = Field(None, description="Kept in the log for subgroups; never model input.")

    @model_validator(mode="before")
    @classmethod
    def _no_empty_text(cls, values: object) -> object:
        """A form that was left empty sends "", and means nothing."""
        if isinstance(values, dict):
            return {key: None if value == "" else value for key, value in values.items()}
        return values


class Attribution(Message):
    """Exact Shapley value of each modality; prevalence + image + text + table = probability."""

    prevalence: float = Field(description="Probability when nothing is known.")
    image: float = Field(description="0 when the modality was not used, as for the other two.")
    text: float
    table: float


class ReportAnswer(Message):
    """The report that the model read, or why there was none."""

    source: Literal["sent", "written", "none"]
    text: str | None = None
    report: Report | None = Field(None, description="Structured form; null where free text was sent.")
    failure: str | None = Field(None, description="Why the writer gave no report.")


class PredictionAnswer(Message):
    """One prediction. It is a row in the prediction log before it leaves."""

    prediction_id: str
    created_at: AwareDatetime
    notice: str = NOTICE
    bundle_version: str
    probability: float = Field(ge=0, le=1, description=_PROBABILITY)
    prediction_set: list[Outcome] = Field(
        description="Outcomes that cannot be excluded at the bundle's coverage (split conformal)."
    )
    modalities_used: list[Modality]
    attribution: Attribution
    facts: Facts | None = Field(None, description="Measured from the volumes.")
    report: ReportAnswer
    warnings: list[str] = Field(default_factory=list, description="What a reader of the result should know.")


class OutcomeReport(Message):
    """The modified Rankin scale that was seen 90 days after the stroke."""

    prediction_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]
    mrs_90d: int = Field(ge=0, le=6, strict=True)


class OutcomeAnswer(Message):
    """What became of a reported outcome; telling the same one twice is no error."""

    prediction_id: str
    mrs_90d: int
    poor_outcome: bool = Field(description="mRS 3-6.")
    result: Literal["recorded", "unchanged"]


class ModelLineage(Message):
    """Where the bundle came from; null where a step did not record it."""

    cohort_md5: str | None
    git_revision: str | None
    git_dirty: bool | None
    report_writer: str | None
    report_model: str | None
    feature_service: str | None


class ModelAnswer(Message):
    """The bundle that answers now."""

    bundle_version: str
    created_at: AwareDatetime
    sequences: list[str]
    licence: str
    outcome: Literal["mrs_90d", "mrs"] = Field(
        description="What was learned: the Rankin scale at 90 days, or `mrs` at another or unknown time."
    )
    intended_use: str
    notice: str
    lineage: ModelLineage


class Health(Message):
    """The endpoint can predict and its log can be written."""

    status: Literal["ok"] = "ok"
    bundle_version: str
