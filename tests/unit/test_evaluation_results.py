"""How an evaluation's rivals are ranked, wherever they are."""

from tests.evaluations import rival
from willis.evaluation.results import by_falling_auc, strongest

WEAK, NONE, STRONG, LEVEL = (
    rival(name, "baseline", auc) for name, auc in (("a", 0.6), ("b", None), ("c", 0.8), ("d", 0.8))
)


def test_rivals_without_an_auc_come_last_and_those_on_a_level_keep_their_order() -> None:
    assert by_falling_auc([WEAK, NONE, STRONG, LEVEL]) == [STRONG, LEVEL, WEAK, NONE]


def test_the_strongest_is_the_first_of_those_with_the_largest_auc() -> None:
    assert strongest([WEAK, NONE, STRONG, LEVEL]) is STRONG


def test_where_nothing_was_measured_nobody_is_strongest() -> None:
    assert strongest([NONE]) is None and strongest([]) is None
