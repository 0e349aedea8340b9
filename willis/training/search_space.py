"""What `willis tune` tries: the space held against `TrainParams`, and the trials drawn from it."""

import math
from difflib import get_close_matches
from typing import Any

import numpy as np
from pydantic import ValidationError

from willis.errors import ParamsError
from willis.params import SearchRange, TrainParams, TuneParams

NOT_SEARCHED = {
    "seed": "a lucky seed is not a better model",
    "epochs": "it is the longest run, which bad trials never reach",
    "stop_on": "it says which metric trials are compared by",
    "num_workers": "every trial is one process",
    "use_gpu": "it is the same for all trials",
    "freeze_image_encoder": "a trial starts from no pre-trained weights",
    "threads_per_worker": "it is the same for all trials",
    "checkpoint_every": "it changes no model",
    "max_failures": "it changes no model",
}
ATTEMPTS = 200
DIGITS = 4
"""Significant digits of a number that is drawn: more say nothing, and nobody can read them."""


def check_space(tune: TuneParams, train: TrainParams) -> None:
    """Hold every name and value of the space against `TrainParams`.

    Args:
        tune: section `tune` of params.yaml.
        train: section `train`, from which a trial takes what is not searched.

    Raises:
        ParamsError: all that is wrong at once, each with value, rule and place.
    """
    found = [problem for name, tried in tune.space.items() for problem in _problems(name, tried, train)]
    if not tune.space:
        found = ["tune.space is empty; name a key of train, as learning_rate: {log_uniform: [3e-4, 3e-3]}"]
    if tune.grace_epochs > train.epochs:
        found.append(
            f"tune.grace_epochs is {tune.grace_epochs}; it must be at most train.epochs, {train.epochs} "
            "(params.yaml: tune.grace_epochs)"
        )
    if found:
        raise ParamsError("; ".join(found))


def draw(tune: TuneParams, train: TrainParams) -> tuple[TrainParams, ...]:
    """Draw the trials: `train` as it stands, then random ones, each different from all before.

    A trial depends on the seed, the space and its number alone. Values that do not fit together (a width that
    the heads do not divide) are drawn again.

    Returns:
        At most `num_samples`; fewer where the space has no more.

    Raises:
        ParamsError: nothing that can be drawn differs from `train` and fits together.
    """
    trials = [train]
    for number in range(1, tune.num_samples):
        rng = np.random.default_rng([tune.seed, number])
        drawn = (_drawn(tune, train, rng) for _ in range(ATTEMPTS))
        fresh = next((one for one in drawn if _fits(one) and one not in trials), None)
        if fresh is None:
            break
        trials.append(fresh)
    if len(trials) < 2:
        raise ParamsError(
            f"tune.space offers nothing but what train says already, or no width that fusion_heads divides "
            f"(tried {ATTEMPTS} draws); widen it (params.yaml: tune.space)"
        )
    return tuple(trials)


def searched(params: TrainParams, tune: TuneParams) -> dict[str, Any]:
    """What a trial has in the keys of the space, as YAML and JSON hold it."""
    return params.model_dump(mode="json", include=set(tune.space))


def _problems(name: str, tried: SearchRange, train: TrainParams) -> list[str]:
    place = f"tune.space.{name}"
    if name not in TrainParams.model_fields:
        near = get_close_matches(name, TrainParams.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return [f"{name!r} is not a key of train{hint} (params.yaml: {place})"]
    if name in NOT_SEARCHED:
        return [f"train.{name} is not searched: {NOT_SEARCHED[name]}; remove it (params.yaml: {place})"]
    if name == "outcome" and train.stop_on == "loss":
        return [
            "train.outcome is not searched by the loss, which is another one for ordinal and for binary; "
            f"set train.stop_on: auc or remove it (params.yaml: {place})"
        ]
    given = tried.model_dump(exclude_defaults=True)
    if len(given) != 1:
        return [
            f"{place} is {given}; give exactly one of choices: [...], uniform: [low, high] and log_uniform: "
            f"[low, high] (params.yaml: {place})"
        ]
    kind = next(iter(given))
    wrong = [] if kind == "choices" else _wrong_range(name, *_ends(tried), kind, place)
    return wrong or _wrong_values(name, given[kind], f"{place}.{kind}")


def _wrong_range(name: str, low: float, high: float, kind: str, place: str) -> list[str]:
    if TrainParams.model_fields[name].annotation not in (int, float):
        return [f"train.{name} is no number; give choices: [...] instead of {kind} (params.yaml: {place})"]
    if low < high and (low > 0 or kind == "uniform"):
        return []
    above = " and low above 0" if kind == "log_uniform" else ""
    return [
        f"{place}.{kind} is [{low:g}, {high:g}]; low must be below high{above} (params.yaml: {place}.{kind})"
    ]


def _wrong_values(name: str, values: tuple[Any, ...], place: str) -> list[str]:
    wrong = []
    for value in values:
        try:
            TrainParams.model_validate({name: value})
        except ValidationError as error:
            rule = error.errors()[0]["msg"]
            wrong.append(f"{place} holds {value!r}; {rule}, as for train.{name} (params.yaml: {place})")
    return wrong


def _ends(tried: SearchRange) -> tuple[float, float]:
    ends = tried.uniform or tried.log_uniform
    assert ends is not None, "a range without choices has ends"
    return ends


def _drawn(tune: TuneParams, train: TrainParams, rng: np.random.Generator) -> TrainParams:
    values = {name: _value(name, tried, rng) for name, tried in tune.space.items()}
    return TrainParams.model_validate(train.model_dump() | values)


def _value(name: str, tried: SearchRange, rng: np.random.Generator) -> Any:
    if tried.choices:
        return tried.choices[int(rng.integers(len(tried.choices)))]
    low, high = _ends(tried)
    whole = TrainParams.model_fields[name].annotation is int
    if whole and tried.uniform:
        return int(rng.integers(int(low), int(high) + 1))
    value = rng.uniform(low, high) if tried.uniform else math.exp(rng.uniform(math.log(low), math.log(high)))
    rounded = round(value) if whole else float(f"{value:.{DIGITS}g}")
    return min(max(rounded, low), high)


def _fits(params: TrainParams) -> bool:
    return params.width % params.fusion_heads == 0
