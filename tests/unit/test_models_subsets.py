"""Asked of less than there is: each smaller set of modalities in the same step, and roads of its own."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.networks import PATTERNS, network_with_opinions, small_batch, small_config
from willis.models.fusion import FusionName
from willis.models.head import Roads
from willis.models.losses import InSubsets, Scored, subsets_loss, total_loss
from willis.models.network import NetworkConfig, TrimodalNetwork
from willis.params import TrainParams
from willis.training.loop import World, fit
from willis.training.start import subsets_to_ask

FUSIONS = get_args(FusionName)
SMALLER = torch.tensor([p for p in PATTERNS if not all(p)])
SMALL = {"epochs": 2, "width": 16, "fusion_heads": 4, "contrast_width": 8, "num_workers": 1}


def _network(**changes: object) -> TrimodalNetwork:
    torch.manual_seed(0)
    return network_with_opinions(small_config(**({"roads": "by_pattern"} | changes)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_said_given_less_is_what_a_case_that_has_no_more_is_told(fusion: str) -> None:
    network, batch = _network(fusion=fusion).eval(), small_batch(PATTERNS)
    found = network(batch, SMALLER).in_subsets
    assert found.logit.shape == (len(PATTERNS), len(SMALLER))
    for s, subset in enumerate(SMALLER):
        kept = batch.modality_present & subset
        alone = network(replace(batch, modality_present=kept)).logit
        torch.testing.assert_close(found.logit[:, s], alone, rtol=1e-4, atol=1e-5)
        assert found.told[:, s].tolist() == [bool(row.any()) for row in kept]


def test_asking_for_less_changes_nothing_of_what_is_said_given_all() -> None:
    network, batch = _network().eval(), small_batch(PATTERNS)
    assert torch.equal(network(batch, SMALLER).logit, network(batch).logit)
    assert network(batch).in_subsets is None


def test_a_modality_that_the_network_does_not_read_tells_it_nothing() -> None:
    network = _network(use_modalities=("image", "table")).eval()
    told = network(small_batch([(True, True, True)]), SMALLER).in_subsets.told[0]
    read = [bool(image or table) for image, _, table in SMALLER.tolist()]
    assert told.tolist() == read


def _cross_entropy(logit: float, answer: bool) -> float:
    return math.log1p(math.exp(-logit if answer else logit))


def test_the_loss_given_less_is_the_mean_over_rows_and_subsets_that_have_anything_to_go_on() -> None:
    logit = [[0.3, -1.2, 2.0], [1.0, 0.0, -0.5], [-0.7, 0.4, 0.9], [3.0, 3.0, 3.0]]
    told = [[True, False, True], [True, True, True], [False, False, True], [True, True, True]]
    outcome, weight = [1.0, 0.0, math.nan, 1.0], [1.0, 1.0, 1.0, 0.0]
    scored = Scored(
        logit=torch.zeros(4), outcome=torch.tensor(outcome), grade=torch.full((4,), torch.nan),
        weight=torch.tensor(weight), paired=torch.ones(4, dtype=torch.bool), pair=None, offsets=None,
        in_subsets=InSubsets(torch.tensor(logit), torch.tensor(told)),
    )  # fmt: skip
    counted = [
        _cross_entropy(logit[row][s], outcome[row] == 1)
        for row in range(4)
        for s in range(3)
        if told[row][s] and weight[row] and not math.isnan(outcome[row])
    ]
    expected = sum(counted) / len(counted)
    assert float(subsets_loss(scored)) == pytest.approx(expected, rel=1e-6)
    losses = total_loss(scored, 0.0, 0.0, lambda_subsets=0.7)
    assert float(losses.total) == pytest.approx(math.log(2) + 0.7 * expected, rel=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("present", [PATTERNS, [(True, True, True)] * 3, [(False, False, False)] * 3])
def test_every_parameter_gets_a_gradient_when_less_is_asked_for_too(
    fusion: str, present: list[tuple[bool, ...]]
) -> None:
    network, batch = _network(fusion=fusion).train(), small_batch(present)
    total_loss(network.scored(batch, network(batch, SMALLER)), 0.0, 0.0, lambda_subsets=0.0).total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_road_by_pattern_speaks_where_just_those_modalities_are_there() -> None:
    roads = Roads(2, "by_pattern")
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    roads.weight.data[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    image_and_table = 0b101
    roads.of_pattern.data[image_and_table, 2] = torch.tensor([0.0, 10.0])
    said = {
        present: roads(vectors, torch.tensor([present]))[0].tolist()
        for present in ((True, False, True), (False, False, True), (True, True, True))
    }
    assert said == {
        (True, False, True): [1.0, 0.0, 71.0],
        (False, False, True): [0.0, 0.0, 11.0],
        (True, True, True): [1.0, 4.0, 11.0],
    }


def test_a_contract_that_does_not_say_means_shared_roads() -> None:
    told = _network().config.model_dump()
    del told["roads"]
    assert NetworkConfig.model_validate(told).roads == "shared"


def test_a_network_is_asked_each_smaller_set_of_what_it_reads() -> None:
    config, params = _network().config, TrainParams(lambda_subsets=1.0)
    assert sorted(map(tuple, subsets_to_ask(config, params).tolist())) == sorted(map(tuple, SMALLER.tolist()))
    two = config.model_copy(update={"use_modalities": ("text", "table")})
    asked = {(False, True, False), (False, False, True)}
    assert set(map(tuple, subsets_to_ask(two, params).tolist())) == asked
    assert subsets_to_ask(config.model_copy(update={"use_modalities": ("text",)}), params) is None
    assert subsets_to_ask(config, TrainParams(lambda_subsets=0.0)) is None


def test_training_records_what_it_loses_given_less_and_is_not_asked_where_that_is_off(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = TrainParams(learning_rate=3e-3, lambda_subsets=1.0, **SMALL)  # type: ignore[arg-type]
    history = fit(tiny_job(tiny_ingest, tmp_path / "asked", params), World()).history
    losses = [record.subsets_loss for record in history]
    assert losses[0] is not None and losses[1] is not None and losses[1] < losses[0]
    off = params.model_copy(update={"lambda_subsets": 0.0, "epochs": 1})
    assert fit(tiny_job(tiny_ingest, tmp_path / "off", off), World()).history[0].subsets_loss is None
