"""A source's participants table in Willis's own words, checked value by value.

Four kinds of trouble are told apart: a column that nobody mapped or whose unit is wrong stops the step
(`TableError`); a patient whose outcome breaks a rule is left out; any other value that breaks a rule is taken
as missing, with a remark, because a real patient is worth more than one implausible number; and a missing
value is normal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from willis.cohort.bids import ClinicalTable, LeftOut
from willis.cohort.schema import (
    ADMINISTRATIVE_COLUMNS,
    CATEGORIES,
    CLINICAL_COLUMNS,
    FLAGS,
    NUMBERS,
    OUTCOME_HIGH,
    OUTCOME_LOW,
    POOR_FROM,
    Column,
)
from willis.errors import CohortError, TableError

if TYPE_CHECKING:
    import pandas as pd

UNDATED = datetime(2000, 1, 1, tzinfo=UTC)
"""Event time of a patient of whom no date is known; features stay joinable, and their order means nothing."""

SOOP_COLUMNS: Mapping[str, str] = {"priorstroke": "prior_stroke", "gs_rankin_6isdeath": "mrs"}
SOOP_IGNORED = ("race", "acuteischaemicstroke")
"""How SOOP's participants.tsv maps onto the schema; sex, age, bmi and nihss have its names already."""

OUTCOMES = ("mrs_90d", "mrs")
PLACES = tuple(name for name in ADMINISTRATIVE_COLUMNS if name != "patient_id")
KNOWN = (*(column.name for column in CLINICAL_COLUMNS), *PLACES, *OUTCOMES)

WRONG_UNIT_SHARE, WRONG_UNIT_COUNT = 0.2, 3
"""From this share and number of values out of range, the column is wrong and not the patients."""

_SEXES = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_FLAGS = {"1": 1.0, "yes": 1.0, "true": 1.0, "y": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "n": 0.0}
_CATEGORY_READERS: dict[str, Mapping[str, str]] = {"sex": _SEXES}


@dataclass(frozen=True)
class CleanTable:
    """The table in the schema's words.

    Attributes:
        frame: one row per patient: patient_id, all clinical columns (float64, NaN missing; sex F, M or None),
            site, scanner (str or None), admission_time, scan_time (UTC, microseconds), mrs, poor_outcome
            (float64, NaN missing), has_table.
        left_out: patients with an impossible outcome or contradicting rows.
        remarks: (patient_id, sentence) for each value that was taken as missing.
    """

    frame: "pd.DataFrame"
    left_out: tuple[LeftOut, ...]
    remarks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Wrong:
    """One value that breaks a rule: its row and column, the value as found, the rule, and a hint."""

    row: int
    column: str
    value: str
    rule: str
    hint: str = ""


def clean_table(
    table: ClinicalTable,
    columns: Mapping[str, str],
    ignored: tuple[str, ...],
    outcome: Literal["mrs_90d", "mrs"],
) -> CleanTable:
    """Map, convert and validate a source's table.

    Args:
        table: as `read_participants` gives it: strings, None where missing.
        columns: source column -> Willis column.
        ignored: source columns that are not used.
        outcome: which outcome the source has; its column is `mrs` in the result.

    Raises:
        TableError: unknown column, two columns for one name, no outcome column of that name, or a column in
            which many values break the rule (a wrong unit; the hint is in the message).
    """
    raw = _rename(table.frame, columns, ignored, outcome)
    values, wrong = _convert(raw)
    wrong += _out_of_range(values)
    _check_columns(values, wrong)
    patients = values["patient_id"].tolist()
    sentences = [(w, f"{w.column} is {w.value}; {w.rule}{w.hint}") for w in wrong]
    for item in wrong:
        values.loc[item.row, item.column] = None
    fatal = {
        patients[w.row]: f"{text} (participants.tsv): correct it, or write n/a where it is not known"
        for w, text in sentences
        if w.column == "mrs"
    }
    left_out = (*table.left_out, *(LeftOut(p, p, text) for p, text in fatal.items()))
    remarks = tuple(
        (patients[w.row], f"{text}: taken as missing") for w, text in sentences if w.column != "mrs"
    )
    kept = values[~values["patient_id"].isin(list(fatal))].reset_index(drop=True)
    return CleanTable(_complete(kept), left_out, remarks)


def for_patients(table: CleanTable, patient_ids: tuple[str, ...]) -> "pd.DataFrame":
    """One row per patient, in order; a patient without a row has `has_table` False and nothing known."""
    import pandas as pd

    frame = (
        table.frame.set_index("patient_id").reindex(list(patient_ids)).rename_axis("patient_id").reset_index()
    )
    frame["has_table"] = frame["has_table"].eq(True)
    for name in ("admission_time", "scan_time"):
        frame[name] = frame[name].fillna(pd.Timestamp(UNDATED))
    for name in (*CATEGORIES, "site", "scanner"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def check_outcomes(frame: "pd.DataFrame", outcome: str) -> None:
    """Refuse a table from which no outcome can be learnt.

    Raises:
        CohortError: nobody has an outcome, or all have the same class.
    """
    known = frame["poor_outcome"].dropna()
    hint = "(params.yaml: ingest.outcome_column; ingest.require_outcome: false prepares studies alone)"
    if known.empty:
        raise CohortError(
            f"none of {len(frame)} patients has {outcome}; at least one of each class is needed {hint}"
        )
    if known.nunique() == 1:
        rule = f">= {POOR_FROM}" if known.iloc[0] else f"< {POOR_FROM}"
        raise CohortError(
            f"all {len(known)} patients with an outcome have {outcome} {rule}; both classes are needed {hint}"
        )


def _rename(
    frame: "pd.DataFrame", columns: Mapping[str, str], ignored: tuple[str, ...], outcome: str
) -> "pd.DataFrame":
    targets: dict[str, str] = {"participant_id": "patient_id"}
    for name in frame.columns:
        if name in targets or name in ignored:
            continue
        target = columns.get(name, name)
        if target not in KNOWN:
            raise TableError(_unknown(name, target, name in columns))
        if target in targets.values():
            both = [source for source, taken in targets.items() if taken == target]
            raise TableError(
                f"columns {both[0]!r} and {name!r} are both {target}; list one in ingest.ignored_columns"
            )
        targets[name] = target
    _check_outcome_column(set(targets.values()), outcome)
    kept = frame[list(targets)].rename(columns=targets)
    return kept.rename(columns={outcome: "mrs"}) if outcome in kept else kept


def _unknown(name: str, target: str, mapped: bool) -> str:
    if mapped:
        near = get_close_matches(target, KNOWN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"ingest.columns maps {name!r} to {target!r}, which the schema lacks{hint} (params.yaml)"
    near = get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.5)
    hint = f" (perhaps {name}: {near[0]})" if near else ""
    return (
        f"the table has a column {name!r} that the schema does not know; map it in ingest.columns{hint} "
        "or list it in ingest.ignored_columns (params.yaml)"
    )


def _check_outcome_column(names: set[str], outcome: str) -> None:
    others = [name for name in OUTCOMES if name in names and name != outcome]
    if outcome not in names and others:
        raise TableError(
            f"the table has the outcome {others[0]} and not {outcome}; "
            f"set outcome_column to {others[0]} (params.yaml: ingest.outcome_column)"
        )


def _convert(raw: "pd.DataFrame") -> tuple["pd.DataFrame", list[_Wrong]]:
    import pandas as pd

    wrong: list[_Wrong] = []
    values = pd.DataFrame({"patient_id": raw["patient_id"].astype(str)})
    readers: list[tuple[tuple[str, ...], Callable[[str, str], Any]]] = [
        ((*NUMBERS, "mrs"), _number),
        (FLAGS, _flag),
        (CATEGORIES, _category),
        (("site", "scanner"), lambda text, name: text),
        (("admission_time", "scan_time"), _time),
    ]
    for names, reader in readers:
        for name in names:
            texts = raw[name].tolist() if name in raw else [None] * len(raw)
            values[name] = _read_column(texts, name, reader, wrong)
    return values, wrong


def _read_column(
    texts: list[Any], name: str, reader: Callable[[str, str], Any], wrong: list[_Wrong]
) -> list[Any]:
    found: list[Any] = []
    for row, text in enumerate(texts):
        try:
            found.append(reader(text.strip(), name) if isinstance(text, str) and text.strip() else None)
        except ValueError as error:
            wrong.append(_Wrong(row, name, repr(text), str(error)))
            found.append(None)
    return found


def _number(text: str, name: str) -> float:
    try:
        return float(text.removesuffix("+") if name == "age" else text)
    except ValueError:
        raise ValueError("it must be a number or n/a") from None


def _flag(text: str, name: str) -> float:
    key = text.lower().removesuffix(".0")
    if key not in _FLAGS:
        raise ValueError("it must be 0, 1, yes, no or n/a")
    return _FLAGS[key]


def _category(text: str, name: str) -> str:
    words = _CATEGORY_READERS[name]
    if text.lower() not in words:
        raise ValueError(f"it must be one of {', '.join(sorted(words))} or n/a")
    return words[text.lower()]


def _time(text: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("it must be a time such as 2024-05-01T13:30:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _out_of_range(values: "pd.DataFrame") -> list[_Wrong]:
    """Check every number's range with pandera."""
    import pandera.errors
    import pandera.pandas as pa

    bounds = {c.name: c for c in CLINICAL_COLUMNS if c.kind == "number"}
    bounds["mrs"] = Column("mrs", "number", OUTCOME_LOW, OUTCOME_HIGH, "points")
    checks = {name: [pa.Check.in_range(column.low, column.high)] for name, column in bounds.items()}
    checks["mrs"].append(pa.Check(lambda mrs: mrs == mrs.round(), name="whole"))
    schema = {name: pa.Column(float, rules, nullable=True, coerce=True) for name, rules in checks.items()}
    try:
        pa.DataFrameSchema(schema).validate(values, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases.dropna(subset=["index"]).drop_duplicates(["column", "index"])
        places = zip(cases["column"], cases["index"].astype(int), strict=True)
        return [_broken(bounds[name], row, float(values[name].iloc[row])) for name, row in places]
    return []


def _broken(column: Column, row: int, value: float) -> _Wrong:
    rule = f"it must be {column.low:g} to {column.high:g} {column.unit}"
    rule = f"{rule}, a whole number" if column.name == "mrs" else rule
    hint = f" ({column.hint})" if column.hint and value > column.high else ""
    return _Wrong(row, column.name, f"{value:g}", rule, hint)


def _check_columns(values: "pd.DataFrame", wrong: list[_Wrong]) -> None:
    for name in {item.column: None for item in wrong}:
        items = [item for item in wrong if item.column == name]
        present = int(values[name].notna().sum()) + sum(item.value.startswith("'") for item in items)
        if len(items) >= WRONG_UNIT_COUNT and len(items) >= WRONG_UNIT_SHARE * present:
            first = items[0]
            raise TableError(
                f"{name} is {first.value} for {values['patient_id'].iloc[first.row]}, and {len(items)} of "
                f"{present} patients break the rule; {first.rule}{first.hint} (participants.tsv)"
            )


def _complete(frame: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    numbers = {name: frame[name].astype("float64") for name in (*NUMBERS, *FLAGS, "mrs")}
    times = {
        name: pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]") for name in PLACES[-2:]
    }
    frame = frame.assign(**numbers, **times)
    frame["admission_time"] = frame["admission_time"].fillna(frame["scan_time"])
    frame["scan_time"] = frame["scan_time"].fillna(frame["admission_time"])
    frame["poor_outcome"] = (frame["mrs"] >= POOR_FROM).astype("float64").where(frame["mrs"].notna())
    clinical = [column.name for column in CLINICAL_COLUMNS]
    frame["has_table"] = frame[clinical].notna().any(axis=1)
    order = ["patient_id", *clinical, *PLACES, "mrs", "poor_outcome", "has_table"]
    return frame[order]
