"""Import of a BIDS tree in any form that `bids.read_cohort` knows, and of the tables that come with it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from willis.cohort.bids import PATIENT_ID, ClinicalTable, Cohort, LeftOut, read_cohort
from willis.cohort.intake import (
    ImportSummary,
    finish,
    new_cohort,
    place,
    place_study,
    same_bytes,
    separator_of,
    with_progress,
)
from willis.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

_TABLE_ENDINGS = (".csv", ".tsv", ".xlsx")


def import_bids(source: Path, out: Path) -> ImportSummary:
    """Bring a BIDS tree (SOOP ds004889, ISLES'22, ISLES'24, a user's own) into a canonical cohort.

    Volumes are linked, never rewritten; names become canonical; participants.tsv keeps columns and values.
    Where there is none, the per-patient tables below `phenotype/` (ISLES'24) become one.

    Args:
        source: the tree.
        out: the new cohort; it appears whole or not at all.

    Raises:
        CohortError: no study in the tree, `out` exists, or every study is rejected.
        TableError: a table is not readable as a table of patients.
    """
    tree = read_cohort(source)
    table = _table(tree)
    contradicting = {item.patient_id for item in table.left_out}
    twins = same_bytes(tree.studies)
    studies = [s for s in tree.studies if s.patient_id not in contradicting and s.study_id not in twins]
    with new_cohort(out) as cohort:
        for study in with_progress(studies, "importing studies"):
            place_study(study, cohort)
        for path in sorted((tree.root / "derivatives" / "atlas").glob("*")):
            place(path, cohort / "derivatives" / "atlas" / path.name)
        for name in ("participants.json", "LICENSE"):
            if (tree.root / name).is_file():
                shutil.copyfile(tree.root / name, cohort / name)
        rejected = [*tree.left_out, *twins.values()]
        return finish(cohort, "bids", _name(tree.root), studies, rejected, table)


def _name(root: Path) -> str:
    try:
        description = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
        return str(description["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        return root.name


def _table(tree: Cohort) -> ClinicalTable:
    if tree.table is None:
        return read_phenotype(tree.root / "phenotype")
    if not tree.table.resolve().is_relative_to(tree.root.resolve()):
        raise TableError(f"{tree.table} is a link to a place outside {tree.root}; copy the file in")
    return tree.read_table()


def read_phenotype(folder: Path) -> ClinicalTable:
    """Join the tables below `phenotype/`: one row per patient, one column per fact, all as text.

    A table either has a participant_id column or one row and its patient in its name
    (`sub-stroke0001/ses-01/sub-stroke0001_ses-01_demographic_baseline.csv`).
    A patient for whom two tables say different things about one column is left out.

    Raises:
        TableError: a file is not readable as a table, or has several rows and no participant_id.
    """
    import pandas as pd

    rows: dict[str, dict[str, str]] = {}
    left_out: dict[str, LeftOut] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _TABLE_ENDINGS:
            continue
        for patient_id, column, value in _cells(path):
            known = rows.setdefault(patient_id, {}).setdefault(column, value)
            if known != value:
                reason = f"{column} is {known!r} in one table of phenotype/ and {value!r} in {path.name}"
                left_out[patient_id] = LeftOut(patient_id, patient_id, reason)
    records = [{"participant_id": name, **row} for name, row in rows.items() if name not in left_out]
    frame = (
        pd.DataFrame(records, dtype=object) if records else pd.DataFrame({"participant_id": []}, dtype=str)
    )
    return ClinicalTable(frame.where(frame.notna(), None), tuple(left_out.values()))


def _cells(path: Path) -> Iterator[tuple[str, str, str]]:
    """(patient_id, column, value) of every cell that is not missing."""
    frame = _read(path)
    named = path.name.split("_")[0]
    if "participant_id" not in frame.columns:
        if len(frame) > 1 or not PATIENT_ID.fullmatch(named):
            raise TableError(f"{path} has {len(frame)} rows and no participant_id; whose are they?")
        frame.insert(0, "participant_id", named)
    for row in frame.to_dict("records"):
        name = str(row.pop("participant_id")).strip()
        patient_id = name if name.startswith("sub-") else f"sub-{name}"
        if not PATIENT_ID.fullmatch(patient_id):
            raise TableError(f"participant_id is {name!r}; it must be sub- and letters or digits ({path})")
        for column, value in row.items():
            text = str(value).strip()
            if text and text.lower() not in ("n/a", "nan", "na", "none"):
                yield patient_id, str(column).strip(), text


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if path.suffix.lower() == ".xlsx":
            return pd.read_excel(path, dtype=str, keep_default_na=False)
        separator = separator_of(path)
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, KeyError) as error:
        raise TableError(f"{path} is not readable as a table: {error}") from None
