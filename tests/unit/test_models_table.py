"""Numbers in pieces: cut at quartiles of the training split, joined to any curve with kinks there."""

import numpy as np
import pytest
import torch

from willis.models.table import FeatureColumn, FeatureEncoder, Pieces, fit_columns

pytestmark = pytest.mark.usefixtures("one_thread")

AGES = [40.0, 50.0, 60.0, 70.0, 90.0]


def _rows(name: str, values: list[object]) -> list[dict[str, object]]:
    return [{name: value} for value in values]


def test_a_number_is_cut_at_the_quartiles_of_the_training_split() -> None:
    (age,) = fit_columns(_rows("age", [*AGES, None]), ["age"], piecewise=True)
    assert age.knots == tuple(AGES)


def test_a_volume_is_cut_after_its_logarithm() -> None:
    (volume,) = fit_columns(_rows("volume_ml", [0.0, 1.0, 3.0, 7.0, 15.0]), ["volume_ml"], piecewise=True)
    assert volume.knots == pytest.approx(np.log([1.0, 2.0, 4.0, 8.0, 16.0]))


def test_equal_quartiles_are_one_knot_and_what_is_always_the_same_is_not_cut() -> None:
    load, rare = [0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 99 + [1.0]
    (mostly_nothing,) = fit_columns(_rows("load_aca", load), ["load_aca"], piecewise=True)
    assert mostly_nothing.knots == pytest.approx(np.log1p([0.0, 1.0, 3.0, 5.0]))
    assert fit_columns(_rows("load_aca", rare), ["load_aca"], piecewise=True)[0].knots == ()


@pytest.mark.parametrize("values", [[True, False, True, False], ["left", "right", "both", "left"]])
def test_flags_and_categories_are_not_cut(values: list[object]) -> None:
    columns = fit_columns(_rows("flag", values), ["flag"], piecewise=True)
    assert all(column.knots == () for column in columns)


def test_nothing_is_cut_unless_asked_for() -> None:
    assert fit_columns(_rows("age", list(AGES)), ["age"])[0].knots == ()


def test_a_linear_map_of_the_pieces_is_the_curve_through_any_heights_at_the_knots() -> None:
    knots, heights = np.array(AGES), np.array([3.0, -1.0, 2.0, 2.0, 5.0])
    pieces = Pieces((FeatureColumn(name="sex"), FeatureColumn(name="age", knots=tuple(AGES))))
    ages = np.array([40.0, 44.0, 50.0, 61.0, 77.0, 90.0])
    found = pieces(torch.tensor(np.stack([np.zeros(6), ages], axis=1), dtype=torch.float32)).numpy()
    rise = np.diff(heights) / 2
    curve = heights[0] + rise.sum() + found @ rise
    np.testing.assert_allclose(curve, np.interp(ages, knots, heights), atol=1e-5)


def test_what_is_missing_is_in_the_middle_of_every_piece_and_what_is_far_out_at_an_end() -> None:
    pieces = Pieces((FeatureColumn(name="age", knots=tuple(AGES)),))
    found = pieces(torch.tensor([[np.nan], [-1e30], [1e30]], dtype=torch.float32))
    assert found.tolist() == [[0.0] * 4, [-1.0] * 4, [1.0] * 4]


def test_the_pieces_reach_both_roads_of_an_encoder() -> None:
    columns = fit_columns(_rows("age", list(AGES)), ["age"], piecewise=True)
    encoder = FeatureEncoder(columns, 8, dropout=0.0)
    encoder(torch.tensor([[55.0]])).sum().backward()
    second = 2 + 1  # after the value and its missing mark, the piece from 50 to 60 is the second
    assert encoder.linear.weight.grad[:, second].abs().max() == 0  # halfway through it stands at 0
    assert encoder.linear.weight.grad[:, second - 1].abs().min() > 0
    assert encoder.mlp[0].weight.grad[:, second - 1].abs().max() > 0
