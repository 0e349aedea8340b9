"""Step `ingest`: from a cohort to validated arrays on one grid, facts, table and splits (docs/ingest.md)."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from willis.cohort.bids import Cohort, LeftOut, StudyFiles, read_cohort
from willis.errors import CohortError, StepError
from willis.models.preprocessing import PREPROCESSING, Preprocessing
from willis.outputs import check_replaceable, whole_folder
from willis.params import IngestParams

if TYPE_CHECKING:
    import pandas as pd

    from willis.cohort.table import CleanTable
    from willis.imaging.pack import KeptStudy

RECORD = "ingest.json"


class IngestSummary(BaseModel):
    """What was kept and why the rest was not; also `ingest.json`.

    Attributes:
        rejected: the first reasons as sentences; all of them are in rejected.parquet.
        num_remarks: values taken as missing and other remarks; they are in remarks.parquet.
        planes: planes per study, 3 for each configured sequence of planes.
        regions: the arterial regions of `load_<region>` in facts.parquet.
        arterial_map: where the regions come from.
        cohort_sha256: of the participants table and every file that was read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    purpose: str
    num_studies: int
    num_patients: int
    num_rejected: int
    rejected: tuple[str, ...]
    num_remarks: int
    num_with_table: int
    num_patients_with_outcome: int
    num_poor: int
    outcome: str
    splits: dict[str, int]
    sequences: tuple[str, ...]
    planes: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    regions: tuple[str, ...]
    arterial_map: str
    cohort_sha256: str


def ingest(cohort: Path, out: Path, params: IngestParams, *, strict: bool = False) -> IngestSummary:
    """Validate every study and every row, and write what the later steps read.

    Args:
        cohort: BIDS folder; `derivatives/truth` is never opened.
        out: output folder; it appears whole, or stays as it was.
        params: sequences, grid, thresholds, columns, splits.
        strict: fail when anything is left out, instead of listing it.

    Returns:
        Counts, also written to `out/ingest.json`.

    Raises:
        CohortError: nothing usable, no outcome, one class only, or (strict) anything left out.
        TableError: a column is unknown or in a wrong unit.
        StepError: no space left, or `out` holds something else.
    """
    from willis.cohort.table import clean_table

    found = read_cohort(cohort)
    table = clean_table(found.read_table(), params.columns, params.ignored_columns, params.outcome_column)
    check_replaceable(out, RECORD)
    _check_space(out.parent, len(found.studies), params)
    with whole_folder(out, RECORD) as part:
        return _write_all(part, found, table, params, strict)


def _write_all(
    part: Path, cohort: Cohort, table: "CleanTable", params: IngestParams, strict: bool
) -> IngestSummary:
    from willis.imaging.pack import pack_studies

    refused = {item.patient_id: item.reason for item in table.left_out}
    left_out = list(cohort.left_out)
    left_out += [
        LeftOut(s.patient_id, s.study_id, refused[s.patient_id])
        for s in cohort.studies
        if s.patient_id in refused
    ]
    usable = [study for study in cohort.studies if study.patient_id not in refused]
    required = params.require_outcome and cohort.purpose != "stream"
    _clinical(table, usable, params, required)  # says so before hours of registration, not after
    kept, rejected, digest = pack_studies(part / "shards", usable, params)
    left_out += rejected
    _check_left_out(left_out, kept, strict)
    clinical = _clinical(table, [row.files for row in kept], params, required)
    remarks = [(patient, patient, text) for patient, text in table.remarks]
    remarks += [(row.files.patient_id, row.files.study_id, text) for row in kept for text in row.warnings]
    _write_tables(part, kept, clinical, left_out, remarks, params)
    atlas = next((row.files.atlas for row in kept if row.files.atlas), None)
    made = Preprocessing.of(params, atlas)
    (part / PREPROCESSING).write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
    summary = _summary(cohort, kept, clinical, left_out, len(remarks), digest, params)
    (part / RECORD).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return summary


def _clinical(
    table: "CleanTable", studies: list[StudyFiles], params: IngestParams, required: bool
) -> "pd.DataFrame":
    """One row per patient of these studies; refuses rows from which no outcome can be learnt."""
    from willis.cohort.table import check_outcomes, for_patients

    clinical = for_patients(table, tuple(dict.fromkeys(study.patient_id for study in studies)))
    if required and studies:
        check_outcomes(clinical, params.outcome_column)
    return clinical


def _check_left_out(left_out: list[LeftOut], kept: list["KeptStudy"], strict: bool) -> None:
    listed = "; ".join(f"{item.study_id}: {item.reason}" for item in left_out[:5])
    more = f"; and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    if not kept:
        raise CohortError(f"none of {len(left_out)} studies can be used: {listed}{more}")
    if strict and left_out:
        raise CohortError(f"--strict: {len(left_out)} studies are left out: {listed}{more}")


def _write_tables(
    part: Path,
    kept: list["KeptStudy"],
    clinical: "pd.DataFrame",
    left_out: list[LeftOut],
    remarks: list[tuple[str, str, str]],
    params: IngestParams,
) -> None:
    import pandas as pd

    from willis.cohort.splits import split_of

    ids = ["patient_id", "study_id"]
    studies = _studies_frame(kept, clinical, params)
    facts = pd.DataFrame([row.facts.to_row() for row in kept])
    for name in facts.columns.difference(["laterality", "territory"]):
        facts[name] = facts[name].astype("float64")
    facts = pd.concat([studies[ids], studies["scan_time"].rename("event_time"), facts], axis=1)
    splits = [split_of(patient, params.splits) for patient in clinical["patient_id"]]
    written = {
        "studies": studies,
        "facts": facts,
        "table": clinical.drop(columns="scan_time"),
        "splits": pd.DataFrame({"patient_id": clinical["patient_id"], "split": splits}),
        "rejected": pd.DataFrame(
            [(item.patient_id, item.study_id, item.reason) for item in left_out],
            columns=[*ids, "reason"],
            dtype=str,
        ),
        "remarks": pd.DataFrame(remarks, columns=[*ids, "remark"], dtype=str),
    }
    for name, frame in written.items():
        frame.to_parquet(part / f"{name}.parquet", index=False, coerce_timestamps="us")


def _studies_frame(kept: list["KeptStudy"], clinical: "pd.DataFrame", params: IngestParams) -> "pd.DataFrame":
    import pandas as pd

    where = clinical.set_index("patient_id")[["scan_time", "site", "scanner"]]
    frame = pd.DataFrame(
        {
            "patient_id": [row.files.patient_id for row in kept],
            "study_id": [row.files.study_id for row in kept],
        }
    )
    frame = frame.join(where, on="patient_id")
    for index, sequence in enumerate(params.sequences):
        frame[f"has_{sequence}"] = [row.present[index] for row in kept]
    frame["has_planes"] = [row.has_planes for row in kept]
    frame["registration_quality"] = [row.quality for row in kept]
    frame["adc_unit"] = [row.adc_unit for row in kept]
    frame["shard"] = [row.place[0] for row in kept]
    frame["row"] = [row.place[1] for row in kept]
    return frame


def _summary(
    cohort: Cohort,
    kept: list["KeptStudy"],
    clinical: "pd.DataFrame",
    left_out: list[LeftOut],
    num_remarks: int,
    digest: str,
    params: IngestParams,
) -> IngestSummary:
    from willis.cohort.schema import SPLITS
    from willis.cohort.splits import split_of

    splits = [split_of(patient, params.splits) for patient in clinical["patient_id"]]
    atlases = sorted({row.files.atlas.name if row.files.atlas else "AAL approximation" for row in kept})
    regions = dict.fromkeys(load.region for row in kept for load in row.facts.loads)
    table_digest = hashlib.sha256(cohort.table.read_bytes() if cohort.table else b"").hexdigest()
    return IngestSummary(
        source=cohort.source,
        purpose=cohort.purpose,
        num_studies=len(kept),
        num_patients=len(clinical),
        num_rejected=len(left_out),
        rejected=tuple(f"{item.study_id}: {item.reason}" for item in left_out[:10]),
        num_remarks=num_remarks,
        num_with_table=int(clinical["has_table"].sum()),
        num_patients_with_outcome=int(clinical["mrs"].notna().sum()),
        num_poor=int(clinical["poor_outcome"].sum()),
        outcome=params.outcome_column,
        splits={name: splits.count(name) for name in SPLITS},
        sequences=params.sequences,
        planes=params.planes,
        shape=params.shape,
        spacing_mm=params.spacing_mm,
        regions=tuple(regions),
        arterial_map=", ".join(atlases),
        cohort_sha256=hashlib.sha256(f"{table_digest} {digest}".encode()).hexdigest(),
    )


def _check_space(parent: Path, num_studies: int, params: IngestParams) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    per_study = len(params.sequences) * params.shape[0] * params.shape[1] * params.shape[2]
    needed_mb, free_mb = num_studies * per_study / 1e6, shutil.disk_usage(parent).free / 1e6
    if needed_mb > free_mb:
        raise StepError(
            f"{parent} has {free_mb:.0f} MB free; {num_studies} studies need {needed_mb:.0f} MB: "
            "free some space or give another --out"
        )
