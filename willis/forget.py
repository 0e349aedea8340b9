"""Erasing a patient from everything that Willis keeps, and everyone after the retention period.

A patient stands in the cohort and its versions under the id of the source, in the feature store and the store
of reports likewise, and in the prediction log and the bundles' samples under a pseudonym. The network's
weights are not changed: they hold no row of anybody; train again where that is not enough.
"""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from willis.errors import InputError
from willis.params import VersionParams
from willis.pseudonym import pseudonym
from willis.settings import Settings
from willis.steps.version import Erasure

_REMAINS = (
    "folders that earlier steps wrote (ingest, reports, features, model, evaluation): run them again",
    "weights of bundles that learned from the patient: train and promote again",
    "outcomes and predictions in systems that asked the endpoint, and backups of the database",
)


class Forgotten(BaseModel):
    """What was erased, and what this machine cannot reach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_predictions: int
    num_feature_rows: int
    num_reports: int
    num_bundles: int
    cohort: Erasure | None = None
    remains: tuple[str, ...] = _REMAINS


class Purged(BaseModel):
    """What retention erased."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_predictions: int
    retention_days: int


def forget(patient_id: str, settings: Settings, *, cohort: Path | None = None) -> Forgotten:
    """Erase one patient. Doing it twice is harmless, and goes on where an interrupted run stopped.

    Args:
        patient_id: the id as the source writes it (`sub-0001` in cohorts, whatever callers of the endpoint
            sent). Both the id and its form with and without `sub-` are looked for.
        settings: log, feature store, report store, registry and remote.
        cohort: the cohort to erase the patient from, with its versions; None leaves cohorts alone.

    Raises:
        InputError: the id is empty.
        StoreError: a store does not answer; what is erased so far stays erased, the same call goes on.
    """
    from willis.stores.features import forget_patient
    from willis.stores.registry import Registry

    names = _names(patient_id)
    key = settings.pseudonym_key.get_secret_value()
    registry = Registry.open(settings)
    return Forgotten(
        num_predictions=_from_log([pseudonym(name, key) for name in names], settings),
        num_feature_rows=sum(forget_patient(name, settings) for name in names),
        num_reports=_from_reports(names, settings),
        num_bundles=sum(registry.forget(pseudonym(name, key)) for name in names),
        cohort=None if cohort is None else _from_cohort(cohort, names[0], settings),
    )


def purge(settings: Settings, now: datetime | None = None) -> Purged:
    """Erase predictions older than `settings.retention_days`, with their outcomes.

    Raises:
        StoreError: the log does not answer; nothing was erased.
    """
    from willis.stores.predictions import PredictionLog

    log = PredictionLog(settings.database_url.get_secret_value())
    try:
        num_erased = log.purge(settings.retention_days, now)
    finally:
        log.close()
    return Purged(num_predictions=num_erased, retention_days=settings.retention_days)


def _names(patient_id: str) -> tuple[str, ...]:
    """The id in a cohort first, then as a caller may have sent it."""
    label = patient_id.strip().removeprefix("sub-")
    if not label:
        raise InputError(f"patient id {patient_id!r} is empty; give the id of the cohort or of the request")
    return (f"sub-{label}", label)


def _from_log(pseudonyms: list[str], settings: Settings) -> int:
    from willis.stores.predictions import PredictionLog

    log = PredictionLog(settings.database_url.get_secret_value())
    try:
        return sum(log.forget(name) for name in pseudonyms)
    finally:
        log.close()


def _from_reports(names: tuple[str, ...], settings: Settings) -> int:
    from willis.reports.store import ReportStore

    if not settings.report_store.exists():
        return 0
    with ReportStore(settings.report_store) as store:
        return sum(store.forget(name) for name in names)


def _from_cohort(cohort: Path, patient_id: str, settings: Settings) -> Erasure:
    from willis.steps.version import forget_patient

    return forget_patient(cohort, patient_id, VersionParams(), settings)
