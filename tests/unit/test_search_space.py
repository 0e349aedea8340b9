"""The search space: what is refused before anything starts, and what is drawn from it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from willis.errors import ParamsError
from willis.params import Params, SearchRange, TrainParams, TuneParams, parse_section
from willis.training.search_space import check_space, draw, searched

TRAIN = TrainParams()


def tune(space: dict[str, object], **others: object) -> TuneParams:
    """The section as params.yaml would hold it."""
    return parse_section(TuneParams, {"space": space, **others}, "params.yaml")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "tune.space is empty; name a key of train"),
        (
            {"lerning_rate": {"choices": [1e-3]}},
            r"'lerning_rate' is not a key of train; did you mean 'learning_rate'\? "
            r"\(params.yaml: tune.space.lerning_rate\)",
        ),
        (
            {"dropout": {"choices": [0.1, 1.5]}},
            r"tune.space.dropout.choices holds 1.5; .*less than or equal to 1.*train.dropout "
            r"\(params.yaml: tune.space.dropout.choices\)",
        ),
        ({"learning_rate": {"uniform": [0, 1]}}, r"learning_rate.uniform holds 0.0; .*greater than 0"),
        ({"learning_rate": {"log_uniform": [0, 1]}}, r"log_uniform is \[0, 1\]; .*and low above 0"),
        ({"dropout": {"uniform": [0.5, 0.1]}}, r"dropout.uniform is \[0.5, 0.1\]; low must be below high"),
        ({"width": {"uniform": [64, 128.5]}}, "width.uniform holds 128.5"),
        ({"fusion": {"choices": ["concat", "magic"]}}, "fusion.choices holds 'magic'"),
        ({"fusion": {"uniform": [0, 1]}}, r"train.fusion is no number; give choices"),
        ({"image_facts": {"uniform": [0, 1]}}, r"train.image_facts is no number"),
        ({"dropout": {}}, r"tune.space.dropout is \{\}; give exactly one of"),
        ({"dropout": {"choices": [0.1], "uniform": [0, 1]}}, "give exactly one of"),
        ({"seed": {"choices": [1, 2]}}, "train.seed is not searched: a lucky seed"),
        ({"outcome": {"choices": ["binary", "ordinal"]}}, "not searched by the loss"),
    ],
)
def test_a_space_that_train_would_not_take_is_refused_with_value_rule_and_place(
    space: dict[str, object], said: str
) -> None:
    with pytest.raises(ParamsError, match=said):
        check_space(tune(space), TRAIN)


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = tune({"dropout": {"choices": [2]}, "widht": {"choices": [64]}}, grace_epochs=17)
    with pytest.raises(ParamsError, match=r"holds 2; .*'widht' is not a key.*grace_epochs is 17"):
        check_space(wrong, TRAIN)


def test_the_outcome_may_be_searched_by_the_auc() -> None:
    space = tune({"outcome": {"choices": ["binary", "ordinal"]}})
    check_space(space, TRAIN.model_copy(update={"stop_on": "auc"}))


def test_the_space_of_the_repository_is_sound() -> None:
    from pathlib import Path

    from willis.params import load_params

    params: Params = load_params(Path(__file__).parents[2] / "params.yaml")
    check_space(params.tune, params.train)
    assert len(draw(params.tune, params.train)) == params.tune.num_samples


@given(
    low=st.floats(1e-6, 1e-2),
    factor=st.floats(1.001, 1e3),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["uniform", "log_uniform"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_lies_in_the_range_and_comes_again_with_the_seed(
    low: float, factor: float, seed: int, kind: str
) -> None:
    space = {
        "learning_rate": SearchRange(**{kind: (low, low * factor)}),  # type: ignore[arg-type]
        "batch_size": SearchRange(**{kind: (8, 64)}),  # type: ignore[arg-type]
    }
    params = TuneParams(num_samples=4, seed=seed, space=space)
    check_space(params, TRAIN)
    trials = draw(params, TRAIN)
    assert trials[0] == TRAIN and trials == draw(params, TRAIN)
    for trial in trials[1:]:
        assert low <= trial.learning_rate <= low * factor
        assert 8 <= trial.batch_size <= 64 and isinstance(trial.batch_size, int)
        assert trial.model_dump(exclude=set(space)) == TRAIN.model_dump(exclude=set(space))


def test_more_samples_leave_the_trials_before_as_they_were() -> None:
    space = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    assert draw(tune(space, num_samples=9), TRAIN)[:5] == draw(tune(space, num_samples=5), TRAIN)


def test_a_small_space_gives_each_trial_once() -> None:
    trials = draw(tune({"width": {"choices": [64, 128]}, "image_facts": {"choices": [True, False]}}), TRAIN)
    assert len(trials) == 4 and len({trial.model_dump_json() for trial in trials}) == 4


def test_a_width_that_the_heads_do_not_divide_is_drawn_again() -> None:
    trials = draw(tune({"width": {"uniform": [32, 256]}}), TRAIN)
    assert len(trials) == 16 and all(trial.width % trial.fusion_heads == 0 for trial in trials)


def test_a_space_that_offers_nothing_new_is_refused() -> None:
    with pytest.raises(ParamsError, match="offers nothing but what train says already"):
        draw(tune({"width": {"choices": [TRAIN.width]}}), TRAIN)


def test_what_was_searched_is_told_as_yaml_holds_it() -> None:
    space = tune({"use_modalities": {"choices": [["image", "table"]]}})
    assert searched(draw(space, TRAIN)[1], space) == {"use_modalities": ["image", "table"]}
