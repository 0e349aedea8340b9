"""What the monitor says, typed: monitor.json is one `MonitorSummary`."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

Group = Literal["table", "facts", "report", "prediction", "embedding"]
GROUPS: tuple[Group, ...] = ("table", "facts", "report", "prediction", "embedding")
Kind = Literal["number", "category", "embedding"]


class Finding(BaseModel):
    """Frozen, closed and without NaN: what could not be measured is None with a reason beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ColumnDrift(Finding):
    """One column of the window against the reference.

    A column rings when its statistic exceeds its threshold, or when the share of missing values moved by more
    than `missing_threshold`; `excess` says by how many thresholds. `rings` is None when the column could not
    be compared; `reason` says why.
    """

    name: str
    group: Group
    kind: Kind
    method: Literal["wasserstein", "jensenshannon", "distance"]
    statistic: float | None = None
    threshold: float | None = None
    missing_reference: float
    missing_window: float
    missing_threshold: float
    excess: float = 0.0
    rings: bool | None
    reason: str = ""


class GroupDrift(Finding):
    """How many of a group's compared columns ring."""

    group: Group
    num_columns: int
    num_ringing: int


class Performance(Finding):
    """How good the window's predictions were, as far as outcomes have arrived."""

    num_predictions: int
    num_outcomes: int
    num_poor: int
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    brier: float | None = None
    brier_low: float | None = None
    brier_high: float | None = None
    mean_probability: float | None = None
    share_poor: float | None = None
    reason: str = ""


class Alert(Finding):
    """Something a person should look at, and what to do first."""

    name: str
    severity: Literal["warning", "critical"]
    message: str


class MonitorSummary(Finding):
    """One window against one bundle's reference.

    `drift` is None when the window is too small to tell. It is True only when the share of ringing columns
    reaches `limit_share` and their summed excess lies beyond `chance_excess`, what windows resampled from the
    reference itself reach at the configured quantile.
    """

    version: str
    since: datetime
    until: datetime
    window_size: int
    num_other_versions: int
    reference_size: int
    drift: bool | None
    reason: str
    share: float | None = None
    limit_share: float
    excess: float | None = None
    chance_excess: float | None = None
    groups: tuple[GroupDrift, ...] = ()
    columns: tuple[ColumnDrift, ...] = ()
    performance: Performance
    alerts: tuple[Alert, ...] = ()
    report_html: str | None = None
    snapshot: str | None = None
    seconds: float

    def ringing(self) -> tuple[str, ...]:
        """Names of the columns that ring."""
        return tuple(column.name for column in self.columns if column.rings)
