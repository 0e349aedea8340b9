"""The network as a function of its batch: who is looked at, who is not, and that everything learns."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.networks import (
    PATTERNS,
    SEQUENCES,
    SHAPE,
    network_with_opinions,
    small_batch,
    small_config,
)
from willis.errors import ShapeError
from willis.imaging.shards import decode
from willis.models.fusion import FusionName
from willis.models.losses import total_loss
from willis.models.network import Batch, NetworkConfig, TrimodalNetwork
from willis.models.table import FeatureColumn, encode_rows, fit_columns
from willis.models.vision import PatchStem, PlanesEncoder, VolumeEncoder

FUSIONS = get_args(FusionName)


def _network(**changes: object) -> TrimodalNetwork:
    torch.manual_seed(0)
    return TrimodalNetwork(small_config(**changes)).eval()


def _network_that_answers(**changes: object) -> TrimodalNetwork:
    torch.manual_seed(0)
    return network_with_opinions(small_config(**changes)).eval()


@pytest.mark.parametrize("ordinal", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("present", [PATTERNS, [(False, True, True)] * 4, [(True, True, True)] * 4])
def test_every_parameter_gets_a_gradient_on_every_batch(
    fusion: str, present: list[tuple[bool, ...]], ordinal: bool
) -> None:
    network = _network(fusion=fusion, planes=("flair",), ordinal=ordinal).train()
    batch = small_batch(present, planes=True)
    losses = total_loss(network.scored(batch, network(batch)), lambda_contrast=0.0, lambda_align=0.0)
    losses.total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("used", [("table",), ("image", "table"), ("text",)])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_gets_a_gradient_whatever_the_network_reads(
    fusion: str, used: tuple[str, ...]
) -> None:
    network, batch = _network(fusion=fusion, use_modalities=used), small_batch(PATTERNS)
    total_loss(network.scored(batch, network(batch)), 0.02, 0.2).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_without_any_outcome_still_gives_every_parameter_a_gradient() -> None:
    network = _network()
    batch = replace(small_batch(PATTERNS), outcome=torch.full((7,), torch.nan))
    losses = total_loss(network.scored(batch, network(batch)), 0.02, 0.2)
    losses.total.backward()
    assert float(losses.outcome.detach()) == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_seven_patterns_in_one_batch_answer_as_they_do_alone(fusion: str) -> None:
    network, batch = _network_that_answers(fusion=fusion), small_batch(PATTERNS)
    together = network(batch).logit
    for row in range(len(PATTERNS)):
        alone = network(batch.map(lambda tensor, row=row: tensor[row : row + 1])).logit
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_stands_in_the_fields_of_an_absent_modality_changes_nothing(fusion: str) -> None:
    network, batch = _network_that_answers(fusion=fusion), small_batch(PATTERNS)
    image, text, table = (~batch.modality_present).unbind(dim=1)
    noisy = replace(
        batch,
        volume=torch.where(image[:, None, None, None, None], 255 - batch.volume, batch.volume),
        facts=torch.where(image[:, None], torch.nan, batch.facts),
        text=torch.where(text[:, None], 100.0, batch.text),
        text_tokens=torch.where(text[:, None, None], torch.nan, batch.text_tokens),
        text_real=text[:, None] | batch.text_real,
        table=torch.where(table[:, None], -5.0, batch.table),
    )
    torch.testing.assert_close(network(noisy).logit, network(batch).logit)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_untrained_network_answers_with_the_prevalence(fusion: str) -> None:
    answers = _network(fusion=fusion, prevalence=0.3)(small_batch(PATTERNS)).logit.sigmoid()
    torch.testing.assert_close(answers, torch.full((7,), 0.3))


def test_each_modality_adds_its_own_term_and_nothing_when_it_is_absent() -> None:
    network, batch = _network(), small_batch(PATTERNS)
    network.roads.weight.data.normal_()
    encoded = network.encode(batch)
    vectors = (encoded.image, encoded.text, encoded.table)
    terms = [
        sum(float((vectors[m][row] @ network.roads.weight[m]).detach()) for m in range(3) if pattern[m])
        for row, pattern in enumerate(PATTERNS)
    ]
    torch.testing.assert_close(network(batch).logit, torch.tensor(terms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ordinal", [True, False])
def test_late_fusion_is_what_a_loop_over_the_present_modalities_averages(ordinal: bool) -> None:
    network, batch = _late_network(ordinal=ordinal), small_batch(PATTERNS)
    output = network(batch)
    alone = _each_alone(network, batch)
    weight = network.late.log_weight.detach().numpy()
    for row, pattern in enumerate(PATTERNS):
        total, weights = 0.0, 0.0
        for m in range(3):
            if pattern[m]:
                total += math.exp(weight[m]) * alone[row, m]
                weights += math.exp(weight[m])
        assert float(output.logit[row].detach()) == pytest.approx(total / weights, abs=1e-4)
    assert (output.offsets is not None) == ordinal and output.pair is None


def _late_network(**changes: object) -> TrimodalNetwork:
    network = _network_that_answers(fusion="late", **changes)
    network.late.log_weight.data = torch.tensor([0.7, -0.4, 0.1])
    return network


def _each_alone(network: TrimodalNetwork, batch: Batch) -> np.ndarray:
    """What each modality says when it is the only one: its head in numpy, and its road."""
    encoded, answers = network.encode(batch), np.zeros((len(batch), 3))
    for m, vectors in enumerate((encoded.image, encoded.text, encoded.table)):
        head = network.late.heads[m]
        for row, vector in enumerate(vectors):
            hidden = head.hidden(network.norms[m](vector)).detach().numpy()
            last = float(hidden @ head.logit.weight[0].detach().numpy() + head.logit.bias.detach().numpy()[0])
            answers[row, m] = last + float((vector @ network.roads.weight[m]).detach())
    return answers


def test_a_modality_that_is_alone_makes_late_fusions_answer_whatever_its_weight() -> None:
    network, batch = _late_network(), small_batch([(False, False, True)] * 3)
    said = network(batch).logit
    network.late.log_weight.data = torch.tensor([5.0, 5.0, -5.0])
    torch.testing.assert_close(network(batch).logit, said)


def test_late_fusion_lies_between_what_its_modalities_say_and_its_weights_learn() -> None:
    network, batch = _late_network(), small_batch([(True, True, True)] * 4)
    alone = _each_alone(network, batch)
    logit = network(batch).logit
    said = logit.detach().numpy()
    assert (alone.min(axis=1) - 1e-4 <= said).all() and (said <= alone.max(axis=1) + 1e-4).all()
    total_loss(network.scored(batch, network(batch)), 0.0, 0.0).total.backward()
    assert (network.late.log_weight.grad.abs() > 0).all()


def test_late_fusion_has_a_finite_answer_and_gradient_where_nothing_is_present() -> None:
    network, batch = _network(fusion="late", prevalence=0.3), small_batch([(False, False, False)] * 2)
    logit = network(batch).logit
    logit.sum().backward()
    torch.testing.assert_close(logit.sigmoid(), torch.full((2,), 0.3))
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_cuts_of_the_rankin_scale_rise_and_the_one_at_poor_is_the_logit() -> None:
    torch.manual_seed(0)
    network = _network()
    network.grades.gaps.data.normal_(std=3.0)
    offsets = network(small_batch(PATTERNS)).offsets
    assert offsets[2] == 0 and (offsets.diff() > 0).all()


def test_a_binary_network_has_no_cuts() -> None:
    network = _network(ordinal=False)
    assert network(small_batch(PATTERNS)).offsets is None and network.grades is None


def test_facts_vanish_with_the_image() -> None:
    network = _network_that_answers()
    present, absent = small_batch([(True, True, True)] * 2), small_batch([(False, True, True)] * 2)
    assert not torch.equal(network(present).logit, network(_with_facts(present, 10.0)).logit)
    torch.testing.assert_close(network(absent).logit, network(_with_facts(absent, 10.0)).logit)


def _with_facts(batch: Batch, shift: float) -> Batch:
    return replace(batch, facts=batch.facts + shift)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusing_encoded_modalities_again_equals_a_forward_pass_with_that_presence(fusion: str) -> None:
    network, batch = _network_that_answers(fusion=fusion), small_batch([(True, True, True)] * 3)
    encoded = network.encode(batch)
    for pattern in PATTERNS:
        presence = torch.tensor([pattern] * 3)
        expected = network(replace(batch, modality_present=presence)).logit
        torch.testing.assert_close(network.fuse(encoded, presence).logit, expected)


def test_codes_and_decoded_values_give_the_same_answer() -> None:
    network, batch = _network_that_answers(), small_batch(PATTERNS)
    decoded = replace(batch, volume=decode(batch.volume, SEQUENCES))
    torch.testing.assert_close(network(decoded).logit, network(batch).logit, rtol=1e-4, atol=1e-5)


def test_a_template_in_the_stem_equals_the_template_in_the_volume() -> None:
    torch.manual_seed(0)
    stem = PatchStem(3, (8, 8, 4), (4, 4, 2), 5)
    stem.template.data.normal_()
    present = torch.tensor([[True, False, True], [False, False, True]])
    values = torch.randn(2, 3, 8, 8, 4) * present[:, :, None, None, None]
    filled = torch.where(present[:, :, None, None, None], values, stem.template[None])
    torch.testing.assert_close(stem(values, present), stem.project(filled), rtol=1e-4, atol=1e-5)


def test_what_stands_in_an_absent_sequence_is_ignored_and_its_template_learns() -> None:
    torch.manual_seed(0)
    encoder = VolumeEncoder(SEQUENCES, SHAPE, 16, 0.0)
    volume = torch.randint(1, 256, (2, 3, *SHAPE), dtype=torch.uint8)
    present = torch.tensor([[True, False, True]] * 2)
    other = volume.clone()
    other[:, 1] = 7
    torch.testing.assert_close(encoder(volume, present), encoder(other, present))
    encoder(volume, present).sum().backward()
    learned = encoder.stem.template.grad.abs().sum(dim=(1, 2, 3))
    assert learned[1] > 0 and learned[0] == learned[2] == 0


def test_an_absent_stack_of_planes_is_replaced_by_the_template() -> None:
    torch.manual_seed(0)
    encoder = PlanesEncoder(16, 0.0)
    planes = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    absent = torch.tensor([True, False])
    torch.testing.assert_close(encoder(planes, absent)[1], encoder(255 - planes, absent)[1])
    assert not torch.allclose(encoder(planes, absent)[0], encoder(255 - planes, absent)[0])


def test_a_modality_that_is_not_used_is_not_built_and_not_looked_at() -> None:
    network, batch = _network_that_answers(use_modalities=("table",)), small_batch([(True, True, True)] * 2)
    assert network.image is None and network.text is None
    other = replace(batch, volume=None, text=torch.zeros_like(batch.text))
    torch.testing.assert_close(network(other).logit, network(batch).logit)


def test_a_missing_value_is_not_the_mean() -> None:
    network, batch = _network_that_answers(), small_batch([(False, False, True)])
    mean = replace(batch, table=torch.tensor([[70.0, 0.0]]))
    missing = replace(batch, table=torch.tensor([[torch.nan, 0.0]]))
    assert not torch.allclose(network(mean).logit, network(missing).logit)


def test_another_number_of_table_columns_is_refused_with_both_numbers() -> None:
    batch = replace(small_batch(PATTERNS), table=torch.zeros(7, 5))
    with pytest.raises(ShapeError, match="5 feature columns; the network was fitted for 2"):
        _network_that_answers()(batch)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="fusion_heads is 5; it must divide width"):
        small_config(fusion_heads=5)


def test_the_contract_survives_json() -> None:
    config = small_config()
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config


def test_rows_are_read_by_name_with_unknown_as_nan() -> None:
    columns = (FeatureColumn(name="f_volume_ml", log=True), FeatureColumn(name="sex", level="M"))
    rows = [{"f_volume_ml": np.e - 1, "sex": "M"}, {"sex": "F"}, {"f_volume_ml": None, "sex": float("nan")}]
    np.testing.assert_allclose(encode_rows(columns, rows), [[1, 1], [np.nan, 0], [np.nan, np.nan]], rtol=1e-6)


def test_columns_are_scaled_as_numpy_would_and_empty_ones_left_out() -> None:
    rows = [{"age": 60.0, "side": "left", "none": None}, {"age": 80.0, "side": "right", "none": None}]
    age, left, right = fit_columns(rows, ["age", "side", "none"])
    assert (age.mean, age.sd) == (70.0, 10.0)
    assert (left.level, right.level, left.mean) == ("left", "right", 0.5)


def test_a_batch_without_tokens_is_refused_by_the_fusion_that_reads_them() -> None:
    with pytest.raises(ShapeError, match="no report tokens; fusion 'vdafm_token' reads them"):
        _network(fusion="vdafm_token")(replace(small_batch(PATTERNS), text_tokens=None, text_real=None))
