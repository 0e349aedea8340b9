"""From what a caller sends about one patient to a case for the model: the road of the endpoint and `predict`.

volumes -> prepare_study -> facts -> report (sent, or written by the configured writer)
                                      \\-> Case <- clinical table (sent, or read from the feature store)
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from willis.cohort.bids import Cohort, StudyFiles
from willis.cohort.schema import CLINICAL_COLUMNS, ClinicalRow
from willis.errors import CohortError, ReportError, ServiceError, StudyError, WillisError
from willis.imaging.grid import Grid
from willis.imaging.lesion import Facts, unknown_facts
from willis.imaging.prepare import PreparedStudy, prepare_study, template_brain
from willis.imaging.territory import load_map
from willis.models.case import Case, clinical_row
from willis.params import DeployParams, IngestParams, Params, ReportParams
from willis.pseudonym import pseudonym
from willis.reports.grounding import ground
from willis.reports.measured import measured_numbers
from willis.reports.schema import Findings, Report, refuse_forbidden, report_columns
from willis.reports.writer import ReportWriter, Study, read_study, run, writer_for
from willis.settings import Settings

if TYPE_CHECKING:
    from willis.inference import Prediction

__all__ = [
    "CaseReport", "Caseworker", "ClinicalRow", "DeployParams", "Facts", "Findings", "IngestParams",
    "PreparedCase", "PreparedStudy", "Report", "ReportParams", "measured_columns", "predict_cohort",
    "pseudonym",
]  # fmt: skip

Space = Literal["native", "mni152"]
SENT_BY_CALLER = "caller"
_UNNAMED = "the study"


@dataclass(frozen=True)
class CaseReport:
    """The report of a case and where it came from.

    Attributes:
        source: sent by the caller, written here, or none.
        text: what the model reads; None without a report.
        report: its structured form; None where free text was sent.
        grounding_score: share of the checkable facts that it states rightly.
        failure: why the writer gave none.
        warnings: contradictions to what was measured.
    """

    source: Literal["sent", "written", "none"]
    text: str | None = None
    report: Report | None = None
    grounding_score: float | None = None
    failure: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoggedCase:
    """The part of a prediction's log row that its case decides; the fields are those of `PredictionRow`."""

    table: Mapping[str, float | str | None]
    facts: Mapping[str, float | str | None]
    report: Mapping[str, float | str | None]
    report_text: str | None
    report_writer: str | None
    report_model: str | None
    report_prompt_hash: str | None
    grounding_score: float | None
    feature_times: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case for the model with everything that an answer says about its making."""

    case: Case
    facts: Facts | None
    report: CaseReport
    warnings: tuple[str, ...]
    feature_times: Mapping[str, str] = field(default_factory=dict)

    def logged(self) -> LoggedCase:
        """Return what the case decides of a prediction's log row."""
        table, written = self.case.table, self.report.report
        columns = report_columns(written.findings) if written else {}
        return LoggedCase(
            table={} if table is None else {c.name: getattr(table, c.name) for c in CLINICAL_COLUMNS},
            facts=self.facts.to_row() if self.facts else {},
            report={name.removeprefix("r_"): value for name, value in columns.items()},
            report_text=self.report.text,
            report_writer=written.writer if written else None,
            report_model=written.model if written else None,
            report_prompt_hash=written.prompt_hash if written else None,
            grounding_score=self.report.grounding_score,
            feature_times=self.feature_times,
        )


class Caseworker:
    """Makes cases; keeps nothing about a patient between calls, so threads may share it.

    Args:
        ingest: grid, sequences and thresholds, as the model was trained with.
        report: who writes a report that was not sent.
        settings: feature store, atlas, report server.

    Raises:
        WillisError: the configured writer cannot be had.
    """

    def __init__(self, ingest: IngestParams, report: ReportParams, settings: Settings) -> None:
        self._ingest, self._settings = ingest, settings
        self._attempts = report.max_attempts
        self._writer: ReportWriter | None = writer_for(report, settings)

    def warm_up(self) -> None:
        """Pay for what the first study would pay: the templates, the territories, the feature store."""
        load_map(self._settings.atlas)
        template_brain(Grid(self._ingest.shape, self._ingest.spacing_mm))
        if (self._settings.feast_dir / "registry.db").exists():
            with suppress(WillisError):  # the first patient asked for will be told
                self.read_table("nobody")

    def read_table(self, patient_id: str) -> tuple[ClinicalRow, dict[str, str]]:
        """Read a patient's table from the feature store, with the event time of the view.

        Raises:
            StaleFeaturesError: it holds no row of the patient, or one that is too old.
            StoreError: it does not answer.
        """
        from willis.stores.features import online_features

        row = online_features(patient_id, self._settings, datetime.now(UTC))
        known_since = row.admission_time
        return row, {"clinical": known_since.isoformat()} if known_since else {}

    def prepare(self, files: Mapping[str, Path], space: Space) -> PreparedStudy | None:
        """Validate, register, measure and code the volumes; None without any.

        Args:
            files: part name (a sequence, or `planes`) -> local file.
            space: whether the volumes lie in MNI152 space already.

        Raises:
            StudyError: a file breaks a rule.
        """
        if not files:
            return None
        study = StudyFiles(
            patient_id=_UNNAMED,
            study_id=_UNNAMED,
            dwi=files.get("dwi"),
            adc=files.get("adc"),
            flair=files.get("flair"),
            lesion=files.get("lesion"),
            planes=files.get("planes"),
            atlas=self._settings.atlas,
            in_standard_space=space == "mni152",
        )
        return self.prepare_files(study)

    def prepare_files(self, study: StudyFiles) -> PreparedStudy:
        """Validate, register, measure and code one study of a cohort.

        Raises:
            StudyError: a file breaks a rule.
        """
        return prepare_study(study, self._ingest)

    def take_report(self, sent: Findings | str, study: PreparedStudy | None) -> CaseReport:
        """Accept the caller's report; findings are held against what was measured.

        Raises:
            ReportError: it says what a report must not say.
        """
        if isinstance(sent, str):
            refuse_forbidden(sent)
            return CaseReport("sent", sent.strip())
        facts = study.facts if study else Facts()
        found = ground(sent, facts)
        report = Report(
            findings=sent,
            measured=measured_numbers(facts),
            writer=SENT_BY_CALLER,
            model=SENT_BY_CALLER,
            prompt_hash="",
        )
        if not report.text():
            raise ReportError("the report has neither findings nor impression in words; send one of them")
        warnings = tuple(f"the report was sent, and {text}" for text in found.contradictions)
        return CaseReport("sent", report.text(), report, found.score, None, warnings)

    def write_report(self, study: PreparedStudy | None) -> CaseReport:
        """Let the configured writer read the study; a failure is part of the result, never raised."""
        if self._writer is None or study is None:
            return CaseReport("none")
        view = Study(
            volume=study.volume,
            sequences=self._ingest.sequences,
            sequence_present=tuple(bool(present) for present in study.sequence_present),
            planes=study.planes if study.planes_present else None,
            spacing_mm=self._ingest.spacing_mm,
            facts=study.facts,
        )
        try:
            reading = run(self._writer, read_study(view, self._writer, max_attempts=self._attempts))
        except (ReportError, ServiceError) as error:
            return CaseReport("none", failure=str(error))
        if reading.report is None:
            return CaseReport("none", failure=reading.reason)
        score = reading.grounding.score if reading.grounding else None
        warnings = (f"the report contradicts what was measured: {reading.reason}",) if reading.flagged else ()
        return CaseReport("written", reading.report.text(), reading.report, score, None, warnings)

    def assemble(
        self,
        case_id: str,
        study: PreparedStudy | None,
        table: ClinicalRow | None,
        report: CaseReport,
        feature_times: Mapping[str, str] | None = None,
    ) -> PreparedCase:
        """Join the three modalities."""
        empty = np.zeros(len(self._ingest.sequences), bool)
        case = Case(
            case_id=case_id,
            volume=study.volume if study else None,
            sequence_present=study.sequence_present if study else empty,
            planes=study.planes if study and study.planes_present else None,
            facts=study.facts if study else None,
            table=None if table is None or table.is_empty() else table,
            text=report.text,
        )
        warnings = (*(study.warnings if study else ()), *report.warnings)
        return PreparedCase(case, case.facts, report, warnings, feature_times or {})


def measured_columns(settings: Settings) -> frozenset[str]:
    """Return the names of the facts that studies of requests get here; the atlas decides the regions."""
    return frozenset(unknown_facts(load_map(settings.atlas)).to_row())


class CasePrediction(BaseModel):
    """What `willis predict` says about one study."""

    model_config = ConfigDict(frozen=True)

    case_id: str
    bundle_version: str
    probability: float
    prediction_set: tuple[str, ...]
    modalities_used: tuple[str, ...]
    attribution: dict[str, float]
    prevalence: float
    report: str | None
    warnings: tuple[str, ...] = ()


def predict_cohort(cohort: Path, bundle: str, params: Params, settings: Settings) -> list[CasePrediction]:
    """Predict every study of a canonical cohort by the road of the endpoint; nothing is logged.

    Args:
        cohort: BIDS folder; the table is used where it has a row for the patient.
        bundle: version or alias in the registry.
        params: the sections ingest and report; studies are prepared as the bundle's own were, and what
            differs here is told on stderr.
        settings: registry, report server, atlas.

    Returns:
        One prediction per usable study, in the cohort's order; broken ones are told on stderr.

    Raises:
        InputError: the registry holds no such bundle, or no study of the cohort can be used.
        SettingsError: the atlas of the bundle's facts is not at hand.
    """
    from rich.console import Console
    from rich.progress import track

    from willis.cohort.bids import read_cohort
    from willis.inference import Predictor
    from willis.stores.registry import Registry

    console = Console(stderr=True)
    fetched = Registry.open(settings).fetch(bundle)
    predictor, preprocessing = Predictor.from_bundle(fetched.folder), fetched.preprocessing()
    for difference in preprocessing.differences(params.ingest):
        console.print(f"bundle {fetched.version}: {difference}", highlight=False, soft_wrap=True)
    work = Caseworker(preprocessing.applied_to(params.ingest), params.report, settings)
    found = read_cohort(cohort)
    atlas = preprocessing.atlas_among(settings.atlas, *{study.atlas for study in found.studies})
    rows = _clinical_rows(found, params.ingest)
    predictions: list[CasePrediction] = []
    for study in track(found.studies, "predicting", console=console, transient=True):
        try:
            prepared = work.prepare_files(replace(study, atlas=atlas))
        except StudyError as error:
            console.print(f"{study.study_id} is left out: {error}", highlight=False)
            continue
        text = work.write_report(prepared)
        case = work.assemble(study.study_id, prepared, rows.get(study.patient_id), text)
        predictions.append(_told(case, predictor.predict([case.case])[0], predictor.version or bundle))
    if not predictions:
        raise CohortError(f"{cohort} has {len(found.studies)} studies, and none of them can be used")
    return predictions


def _clinical_rows(cohort: Cohort, ingest: IngestParams) -> dict[str, ClinicalRow]:
    from willis.cohort.table import clean_table, for_patients

    table = clean_table(cohort.read_table(), ingest.columns, ingest.ignored_columns, ingest.outcome_column)
    frame = for_patients(table, cohort.patient_ids)
    records = [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
    return {str(row["patient_id"]): clinical_row(row) for row in records if row["has_table"]}


def _told(case: PreparedCase, prediction: "Prediction", version: str) -> CasePrediction:
    return CasePrediction(
        case_id=prediction.case_id,
        bundle_version=version,
        probability=prediction.probability,
        prediction_set=prediction.prediction_set,
        modalities_used=prediction.modalities_used,
        attribution=prediction.attribution,
        prevalence=prediction.prevalence,
        report=case.report.text,
        warnings=case.warnings,
    )
