"""The tables of the demo's page: who comes first, who is marked, what is folded away."""

from datetime import UTC, datetime

import pytest
from rich.text import Text
from rich.tree import Tree

from infra.local import page_tables as tables
from infra.local.page import outcome_name
from tests.evaluations import an_evaluation
from willis.evaluation.results import Ceiling, Interval
from willis.monitoring.results import ColumnDrift, MonitorSummary, Performance


def a_column(name: str, statistic: float | None, rings: bool | None, **changes: object) -> ColumnDrift:
    fields = {
        "name": name, "group": "facts", "kind": "number", "method": "wasserstein", "statistic": statistic,
        "threshold": 1.0, "missing_reference": 0.0, "missing_window": 0.0, "missing_threshold": 0.1,
        "rings": rings,
    }  # fmt: skip
    return ColumnDrift.model_validate(fields | changes)


def a_window(*columns: ColumnDrift) -> MonitorSummary:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return MonitorSummary(
        version="v", since=now, until=now, window_size=30, num_other_versions=0, reference_size=30,
        drift=False, reason="", limit_share=0.1, columns=columns, seconds=1.0,
        performance=Performance(num_predictions=30, num_outcomes=0, num_poor=0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "source", "said"),
    [
        ("mrs_90d", "synthetic", "mRS 3-6 at 90 days"),
        ("mrs", "soop", "Rankin score 3-6 (registry, read as the one at discharge)"),
        ("mrs", "bids", "mRS 3-6 as the source gives it, not known to be at 90 days"),
    ],
)
def test_the_outcome_claims_no_more_than_its_source(outcome: str, source: str, said: str) -> None:
    assert outcome_name(an_evaluation(outcome=outcome, source=source)) == said


def test_willis_comes_first_and_rivals_by_falling_auc() -> None:
    first, baselines, scores, controls = tables.rival_table(an_evaluation()).groups
    assert [row.mark for row in first.rows] == ["headline"]
    assert [row.name for row in baselines.rows] == [
        "boosting on facts", "logistic on facts", "logistic on table",
    ]  # fmt: skip
    assert [row.name for row in (*scores.rows, *controls.rows)] == ["ASTRAL", "image only"]


def test_the_strongest_rival_is_no_control_and_alone_is_marked() -> None:
    groups = tables.rival_table(an_evaluation()).groups
    assert [row.name for g in groups for row in g.rows if row.mark == "strongest"] == ["boosting on facts"]
    assert tables.strongest_rival(an_evaluation(baselines=())) is None


def test_a_lead_has_a_verdict_only_beyond_chance() -> None:
    rows = {row.name: row for group in tables.rival_table(an_evaluation()).groups for row in group.rows}
    assert rows["logistic on facts"].verdict == "behind"
    assert rows["boosting on facts"].verdict == ""
    assert [r.name for r in tables.better_rivals(an_evaluation())] == ["logistic on facts"]


def test_every_interval_lies_on_the_shared_axis() -> None:
    low = Interval(value=0.45, low=0.31, high=0.6)
    ceiling = Ceiling(
        auc=low, image=None, table=None, lead_over_truth=low, expected_full=None, expected_image=None,
        expected_table=None, preset=None,
    )  # fmt: skip
    table = tables.rival_table(an_evaluation(ceiling=ceiling))
    assert table.low == 0.3
    bars = [row.bar for group in table.groups for row in group.rows if row.bar]
    assert all(0 <= bar.left <= bar.point <= bar.left + bar.width <= 100.01 for bar in bars)


def test_columns_that_ring_are_always_unfolded_and_first() -> None:
    quiet = [a_column(f"q{k}", 0.9 - k / 100, False) for k in range(30)]
    ringing = [a_column(f"r{k}", 0.1, True, missing_window=0.5) for k in range(20)]
    table = tables.drift_table({"ordinary": a_window(*quiet, *ringing), "new_scanner": None})
    assert {row.name for row in table.shown} == {column.name for column in ringing}
    assert table.windows == ("ordinary",)
    few = tables.drift_table({"ordinary": a_window(*quiet, *ringing[:1])})
    assert [row.name for row in few.shown[:3]] == ["r0", "q0", "q1"]
    assert len(few.shown) == tables.NUM_DRIFT_ROWS
    assert len(few.shown) + len(few.folded) == 31


def test_columns_that_could_not_be_compared_stand_under_their_reason() -> None:
    window = a_window(
        *(a_column(name, None, None, reason="0 values") for name in "ab"), a_column("c", 0.1, False)
    )
    table = tables.drift_table({"ordinary": window})
    assert table.not_compared == {"0 values": ("a", "b")}
    assert [row.name for row in table.shown] == ["c"]


def test_every_branch_of_a_lineage_is_a_link_with_its_leaves() -> None:
    tree = Tree("[bold]prediction[/] 7")
    tree.add(Text("answered: 0.5"))
    bundle = tree.add("[bold]bundle[/] v")
    bundle.add("made today")
    bundle.add("[bold]code[/]").add(Text("loss = 0.123456789"))
    assert list(tables.links(tree)) == [
        tables.Link("prediction 7", ("answered: 0.5",)),
        tables.Link("bundle v", ("made today",)),
        tables.Link("code", ("loss = 0.1235",)),
    ]


def test_signed_numbers_read_well() -> None:
    assert [tables.signed(x) for x in (0.1, -0.0501, -0.0001)] == ["+0.100", "−0.050", "0.000"]
