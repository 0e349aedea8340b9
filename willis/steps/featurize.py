"""Step `featurize`: fill the feature store, join the training table point in time, copy it online.

Event times are those at which things became known: the table at admission, the facts at the scan, the report
when it was written. A row of the training table asks what was known `decision_minutes` after its scan.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from willis.cohort.schema import CATEGORIES, CLINICAL_COLUMNS, SPLITS
from willis.errors import ParamsError, StepError
from willis.imaging.lesion import Facts
from willis.params import FeaturizeParams
from willis.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

CLINICAL = tuple(column.name for column in CLINICAL_COLUMNS)
FACTS = tuple(name for name in Facts.model_fields if name != "loads")
_FACT_WORDS = ("laterality", "territory")
_FROM_TABLE = ("site", "scanner", "mrs", "poor_outcome")


class FeaturizeSummary(BaseModel):
    """What the step stored and joined; also features.json.

    Attributes:
        events_from: earliest event time among the features.
        events_until: latest one.
        num_without_table: rows for which no clinical value was known at their time.
        num_without_text: rows for which no report was known at their time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature_service: str
    num_rows: int
    num_without_table: int
    num_without_text: int
    table_columns: tuple[str, ...]
    fact_columns: tuple[str, ...]
    report_columns: tuple[str, ...]
    events_from: datetime | None
    events_until: datetime | None
    ttl_days: int
    report_writers: tuple[str, ...]
    report_models: tuple[str, ...]
    report_prompt_hashes: tuple[str, ...]


def featurize(
    ingest: Path, reports: Path, out: Path, params: FeaturizeParams, settings: Settings
) -> FeaturizeSummary:
    """Write training_table.parquet, one row per study in the order of studies.parquet, and features.json.

    Args:
        ingest: output of `ingest`.
        reports: output of `report`.
        out: folder for this step's output.
        params: how long features stay valid, and which clinical columns are used.
        settings: where the feature store lives.

    Raises:
        ParamsError: `table_columns` names a column that the schema lacks.
        StepError: the inputs were not made from each other.
        StoreError: the feature store does not answer, or did not return every row once.
    """
    from willis.stores import features as store

    chosen = _chosen(params)
    studies, facts, table, splits, written = _read(ingest, reports)
    times = _event_times(studies, params)
    rows = {
        "clinical": _clinical_rows(table, studies, times),
        "imaging": _imaging_rows(facts, studies, times),
        "report": _report_rows(written, times),
    }
    store.write_rows(rows, timedelta(days=params.ttl_days), settings)
    asked = studies[["patient_id", "study_id"]].assign(event_timestamp=times["asked"])
    joined = store.as_known_at(asked, settings)
    training = _training_table(asked, joined, table, splits, chosen)
    _require_own_studies(training, joined, num_reports=len(rows["report"]))
    store.materialise(settings)
    events = [row["event_timestamp"] for row in rows.values() if len(row)]
    return _write(out, training, _summarise(training, written, chosen, events, params, store.SERVICE))


def _chosen(params: FeaturizeParams) -> tuple[str, ...]:
    from difflib import get_close_matches

    for name in params.table_columns:
        if name not in CLINICAL:
            near = get_close_matches(name, CLINICAL, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParamsError(f"{name!r} is no clinical column{hint} (params.yaml: featurize.table_columns)")
    return params.table_columns or CLINICAL


def _read(ingest: Path, reports: Path) -> "tuple[pd.DataFrame, ...]":
    import pandas as pd

    paths = [ingest / f"{name}.parquet" for name in ("studies", "facts", "table", "splits")]
    try:
        frames = [pd.read_parquet(path) for path in [*paths, reports / "reports.parquet"]]
    except FileNotFoundError as error:
        raise StepError(
            f"{error.filename} is missing; run `willis ingest` and `willis report` first"
        ) from None
    studies, facts, table, splits, written = frames
    for frame, key, place in (
        (facts, "study_id", paths[1]),
        (written, "study_id", reports / "reports.parquet"),
        (table, "patient_id", paths[2]),
        (splits, "patient_id", paths[3]),
    ):
        missing = sorted(set(studies[key]) - set(frame[key]))
        if missing or frame[key].duplicated().any():
            raise StepError(
                f"{place} must have one row for every {key} of {paths[0]}; {len(missing)} are missing "
                f"{missing[:3]}, {int(frame[key].duplicated().sum())} are double; run the steps again"
            )
    return studies, facts, table, splits, written


def _event_times(studies: "pd.DataFrame", params: FeaturizeParams) -> "pd.DataFrame":
    """Return, by study, when it was scanned and when its row asks; no row asks after the patient's next scan.

    Studies of one patient that carry the same time (a source without dates) are set a day apart, in their
    order, so that each row can only find its own study.
    """
    import pandas as pd

    scanned = pd.to_datetime(studies["scan_time"], utc=True).dt.as_unit("us")
    if scanned.isna().any():
        unknown = studies.loc[scanned.isna(), "study_id"].tolist()
        raise StepError(f"{len(unknown)} studies have no scan_time: {unknown[:3]}; run `willis ingest` again")
    times = studies[["patient_id", "study_id"]].assign(scanned=scanned)
    times["moved"] = pd.to_timedelta(times.groupby(["patient_id", "scanned"]).cumcount(), unit="D")
    times["scanned"] += times["moved"]
    ordered = times.sort_values("scanned", kind="stable")
    following = ordered.groupby("patient_id")["scanned"].shift(-1).reindex(times.index)
    times["asked"] = times["scanned"] + pd.Timedelta(minutes=params.decision_minutes)
    before_next = following - pd.Timedelta(microseconds=1)
    times["asked"] = times["asked"].where(~(before_next < times["asked"]), before_next)
    return times


def _clinical_rows(table: "pd.DataFrame", studies: "pd.DataFrame", times: "pd.DataFrame") -> "pd.DataFrame":
    """One row per patient with a clinical value; without an admission time it is known at the first scan."""
    import pandas as pd

    known = table[table["patient_id"].isin(studies["patient_id"]) & table["has_table"].astype(bool)]
    first_scan = known["patient_id"].map(times.groupby("patient_id")["scanned"].min())
    admitted = pd.to_datetime(known["admission_time"], utc=True).dt.as_unit("us").fillna(first_scan)
    rows = known.reindex(columns=["patient_id", *CLINICAL])
    numbers = [name for name in CLINICAL if name not in CATEGORIES]
    return rows.astype(dict.fromkeys(numbers, "float64")).assign(event_timestamp=admitted)


def _imaging_rows(facts: "pd.DataFrame", studies: "pd.DataFrame", times: "pd.DataFrame") -> "pd.DataFrame":
    ordered = facts.set_index("study_id").loc[studies["study_id"]].reset_index()
    loads = [name for name in facts.columns if name.startswith("load_")]
    numbers = [name for name in FACTS if name not in _FACT_WORDS]
    rows = ordered[["patient_id", "study_id", *FACTS]].astype(dict.fromkeys(numbers, "float64"))
    rows["loads"] = [_packed(row) for row in ordered[loads].to_dict("records")]
    return rows.assign(event_timestamp=times["scanned"].to_numpy())


def _packed(loads: dict[Any, float]) -> str:
    values = {name: None if value != value else value for name, value in loads.items()}
    return json.dumps(values, sort_keys=True)


def _report_rows(written: "pd.DataFrame", times: "pd.DataFrame") -> "pd.DataFrame":
    """Valid reports at the time they were written, moved like their study when times had to be told apart."""
    import pandas as pd

    valid = written[written["text"].fillna("") != ""]
    moved = valid["study_id"].map(times.set_index("study_id")["moved"])
    at = pd.to_datetime(valid["event_time"], utc=True).dt.as_unit("us") + moved
    fields = [name for name in written.columns if name.startswith("r_")]
    rows = valid[["patient_id", "study_id", "text", "grounding_score", *fields]]
    return rows.assign(event_timestamp=at)


def _training_table(
    asked: "pd.DataFrame",
    joined: "pd.DataFrame",
    table: "pd.DataFrame",
    splits: "pd.DataFrame",
    chosen: tuple[str, ...],
) -> "pd.DataFrame":
    import pandas as pd

    clinical = joined[[f"clinical__{name}" for name in CLINICAL]].set_axis(CLINICAL, axis=1)
    unused = [name for name in CLINICAL if name not in chosen]
    clinical = clinical.assign(**dict.fromkeys(unused, None)).astype(
        {name: "object" if name in CATEGORIES else "float64" for name in CLINICAL}
    )
    facts = joined[[f"imaging__{name}" for name in FACTS]].set_axis([f"f_{name}" for name in FACTS], axis=1)
    loads = pd.DataFrame(
        [json.loads(packed) if isinstance(packed, str) else {} for packed in joined["imaging__loads"]],
        index=joined.index,
    ).astype("float64")
    fields = [name for name in joined.columns if name.startswith("report__") and name != "report__study_id"]
    words = joined[fields].set_axis([name.removeprefix("report__") for name in fields], axis=1)
    beside = table.set_index("patient_id").reindex(columns=list(_FROM_TABLE)).loc[asked["patient_id"]]
    split = splits.set_index("patient_id")["split"].loc[asked["patient_id"]]
    return pd.concat(
        [
            asked.assign(split=split.to_numpy()),
            clinical,
            facts,
            loads.add_prefix("f_"),
            words,
            beside.set_index(asked.index),
        ],
        axis=1,
    ).assign(has_table=clinical.notna().any(axis=1), has_text=words["text"].notna())


def _require_own_studies(training: "pd.DataFrame", joined: "pd.DataFrame", num_reports: int) -> None:
    """A row must have got the facts and the report of its own study, and reports must have come through."""
    own = training["study_id"]
    strange = (joined["imaging__study_id"] != own) | (
        joined["report__study_id"].notna() & (joined["report__study_id"] != own)
    )
    if strange.any():
        raise StepError(
            f"{int(strange.sum())} rows of the training table got another study's features, first "
            f"{own[strange].iloc[0]!r}; check scan_time and event_time of that patient's studies"
        )
    if set(training["split"]) - set(SPLITS):
        raise StepError(
            f"unknown splits {sorted(set(training['split']) - set(SPLITS))}; run `willis ingest` again"
        )
    if num_reports and not training["has_text"].any():
        raise StepError(
            f"none of {num_reports} reports was known when its row was asked for; report.turnaround_minutes "
            "must be below featurize.decision_minutes (params.yaml)"
        )


def _summarise(
    training: "pd.DataFrame",
    written: "pd.DataFrame",
    chosen: tuple[str, ...],
    events: "list[pd.Series[Any]]",
    params: FeaturizeParams,
    service: str,
) -> FeaturizeSummary:
    def distinct(column: str) -> tuple[str, ...]:
        return tuple(sorted(written[column].dropna().unique()))

    return FeaturizeSummary(
        feature_service=service,
        num_rows=len(training),
        num_without_table=int((~training["has_table"]).sum()),
        num_without_text=int((~training["has_text"]).sum()),
        table_columns=chosen,
        fact_columns=tuple(name for name in training.columns if name.startswith("f_")),
        report_columns=tuple(name for name in training.columns if name.startswith("r_")),
        events_from=min(times.min() for times in events) if events else None,
        events_until=max(times.max() for times in events) if events else None,
        ttl_days=params.ttl_days,
        report_writers=distinct("writer"),
        report_models=distinct("model"),
        report_prompt_hashes=distinct("prompt_hash"),
    )


def _write(out: Path, training: "pd.DataFrame", summary: FeaturizeSummary) -> FeaturizeSummary:
    """Write both files whole, the summary last: it says that the step is finished."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / "training_table.unfinished"
    training.to_parquet(unfinished, index=False, coerce_timestamps="us")
    unfinished.replace(out / "training_table.parquet")
    unfinished.write_text(summary.model_dump_json(indent=2))
    unfinished.replace(out / "features.json")
    return summary
