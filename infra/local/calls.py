"""Which patients a stream asks about, and what it sends of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.local.source import NUM_STREAM
from infra.local.stream import Call
from willis.cohort.bids import Cohort, StudyFiles, read_cohort
from willis.cohort.schema import CLINICAL_COLUMNS, ClinicalRow
from willis.cohort.table import clean_table
from willis.errors import CohortError
from willis.params import IngestParams

if TYPE_CHECKING:
    import pandas as pd


def stream_calls(cohort: Path, params: IngestParams, ingested: Path) -> list[Call]:
    """One call per patient: a stream's own cohort whole, another cohort's test patients alone.

    Args:
        cohort: canonical cohort.
        params: the section `ingest`, for the column mapping, and for what the outcome is: one at another time
            than 90 days is not told to the endpoint.
        ingested: output folder of `ingest`, for the splits.

    Raises:
        CohortError: no patient is left to ask about.
    """
    found = read_cohort(cohort)
    patients = _unseen(found, ingested)
    table = clean_table(found.read_table(), params.columns, params.ignored_columns, params.outcome_column)
    rows = {str(row["patient_id"]): row for _, row in table.frame.iterrows()}
    studies = [study for study in found.studies if study.patient_id in patients][:NUM_STREAM]
    if not studies:
        raise CohortError(f"{cohort} has no patient whom training has not seen; bring more patients")
    is_at_90_days = params.outcome_column == "mrs_90d"
    return [_call(study, rows.get(study.patient_id), is_at_90_days) for study in studies]


def _unseen(cohort: Cohort, ingested: Path) -> set[str]:
    import pandas as pd

    if cohort.purpose == "stream":
        return set(cohort.patient_ids)
    splits = pd.read_parquet(ingested / "splits.parquet")
    return set(splits.loc[splits["split"] == "test", "patient_id"])


def _call(study: StudyFiles, row: "pd.Series[Any] | None", is_at_90_days: bool) -> Call:
    if row is None:
        return Call(study, None, None, None)
    clinical = ClinicalRow(**{column.name: _plain(row[column.name]) for column in CLINICAL_COLUMNS})
    mrs, scanner = _plain(row["mrs"]) if is_at_90_days else None, _plain(row["scanner"])
    return Call(
        study=study,
        clinical=None if clinical.is_empty() else clinical,
        scanner=None if scanner is None else str(scanner),
        mrs_90d=None if mrs is None else int(float(str(mrs))),
    )


def _plain(value: Any) -> Any:
    return None if value is None or value != value else value
