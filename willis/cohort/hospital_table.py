"""A hospital's clinical table on its way into an import: comes with patient ids, leaves with pseudonyms."""

from collections.abc import Hashable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from willis.cohort.bids import MISSING, ClinicalTable, LeftOut
from willis.cohort.deidentify import Pseudonyms
from willis.cohort.intake import separator_of
from willis.cohort.schema import CLINICAL_COLUMNS
from willis.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

_KEY = "patient_id"
_OUTCOMES = ("mrs", "mrs_90d")
_TIMES = ("admission_time",)
_NUMBERS = tuple(column.name for column in CLINICAL_COLUMNS if column.name != "sex") + _OUTCOMES


def read_hospital_table(path: Path | None, names: Pseudonyms) -> ClinicalTable:
    """Read a CSV or TSV of `patient_id`, Willis's clinical columns, `admission_time` and an outcome.

    Every cell is a number, F or M, or a time, so that no free text can pass; times are shifted with the
    patient's scans.

    Raises:
        TableError: another column, a cell that is none of these (its row number is given, not its content),
            or a patient twice.
    """
    import pandas as pd

    if path is None:
        return ClinicalTable(pd.DataFrame({"participant_id": []}, dtype=str), ())
    try:
        separator = separator_of(path)
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is not readable as a table: {type(error).__name__}") from None
    allowed = (_KEY, "sex", *_NUMBERS, *_TIMES)
    strange = [str(name) for name in frame.columns if name not in allowed]
    if strange or _KEY not in frame.columns:
        found = ", ".join(strange) or "without patient_id"
        raise TableError(
            f"{path.name} has columns {found}; it must have patient_id and "
            f"may have {', '.join(allowed[1:])}: anything else could carry free text"
        )
    frame = frame.drop_duplicates()
    twice = sorted({names.patient(value) for value in frame[_KEY][frame[_KEY].duplicated()]})
    records = [_record(row, number, names) for number, row in enumerate(frame.to_dict("records"), start=2)]
    result = pd.DataFrame(
        [record for record in records if record["participant_id"] not in twice], dtype=object
    )
    reason = f"rows of {path.name} contradict each other; keep one"
    return ClinicalTable(result, tuple(LeftOut(name, name, reason) for name in twice))


def _record(row: Mapping[Hashable, str], number: int, names: Pseudonyms) -> dict[str, str | None]:
    patient_id = row[_KEY].strip()
    cells: dict[str, str | None] = {"participant_id": names.patient(patient_id)}
    for name, text in row.items():
        column = str(name)
        if column == _KEY:
            continue
        value = text.strip()
        if value in MISSING:
            cells[column] = None
        elif column in _TIMES:
            cells[column] = _shifted(value, names, patient_id, column, number)
        elif value in ("F", "M") if column == "sex" else _is_number(value):
            cells[column] = "89+" if column == "age" and float(value.removesuffix("+")) >= 90 else value
        else:
            raise TableError(f"{column} in row {number} is no {'F or M' if column == 'sex' else 'number'}")
    return cells


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("+"))
    except ValueError:
        return False
    return True


def _shifted(text: str, names: Pseudonyms, patient_id: str, column: str, number: int) -> str:
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise TableError(f"{column} in row {number} is no ISO 8601 time") from None
    return (moment.replace(tzinfo=None) + names.shift(patient_id)).strftime("%Y-%m-%dT%H:%M:%SZ")


def join_rows(rows: Mapping[str, Mapping[str, str | None]], clinical: ClinicalTable) -> "pd.DataFrame":
    """Join what the headers say with what the table says; where both have a value, the table's counts."""
    import pandas as pd

    if not rows:
        return clinical.frame.head(0)
    imaging = pd.DataFrame(list(rows.values()), dtype=object).set_index("participant_id")
    table = clinical.frame.set_index("participant_id")
    joined = table[table.index.isin(imaging.index)].combine_first(imaging)
    first = [name for name in imaging.columns if name in joined.columns]
    joined = joined[first + [name for name in joined.columns if name not in first]].sort_index().reset_index()
    return joined.astype(object).where(joined.notna(), None)
