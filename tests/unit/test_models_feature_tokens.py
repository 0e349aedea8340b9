"""The FT-Transformer of the table against attention written out in loops."""

from typing import get_args

import numpy as np
import pytest
import torch

from tests.networks import PATTERNS, network_with_opinions, small_batch, small_config
from willis.models.feature_tokens import HEADS, FeatureTransformer
from willis.models.losses import total_loss
from willis.models.table import FeatureColumn, FeatureEncoder, TableEncoderName
from willis.params import TrainParams

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = 5
UNKNOWN = torch.tensor([[False] * 5, [True, False, False, True, False], [True] * 5])
Array = np.ndarray


def _transformer() -> FeatureTransformer:
    torch.manual_seed(0)
    transformer = FeatureTransformer(COLUMNS, width=7, dropout=0.3).eval()
    for parameter in transformer.parameters():  # norms and biases start where mistakes would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return transformer


def _values() -> torch.Tensor:
    return torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(1))


def _weights(module: torch.nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def _normed(token: Array, weight: Array, bias: Array) -> Array:
    return (token - token.mean()) / np.sqrt(token.var() + 1e-5) * weight + bias


def _attended(tokens: list[Array], weights: dict[str, Array], block: str) -> list[Array]:
    """Every token asks every token, head by head."""
    width = len(tokens[0])
    each = width // HEADS
    w_in, b_in = weights[f"{block}.attend.in_proj_weight"], weights[f"{block}.attend.in_proj_bias"]
    asks, keys, values = ([w_in[s] @ t + b_in[s] for t in tokens]
                          for s in (slice(k * width, (k + 1) * width) for k in range(3)))  # fmt: skip
    found = []
    for ask in asks:
        heads = []
        for head in range(HEADS):
            part = slice(head * each, (head + 1) * each)
            likes = np.exp([ask[part] @ key[part] / np.sqrt(each) for key in keys])
            heads.append(
                sum(like / likes.sum() * value[part] for like, value in zip(likes, values, strict=True))
            )
        out = weights[f"{block}.attend.out_proj.weight"] @ np.concatenate(heads)
        found.append(out + weights[f"{block}.attend.out_proj.bias"])
    return found


def _thought(token: Array, weights: dict[str, Array], block: str) -> Array:
    normed = _normed(token, weights[f"{block}.think.0.weight"], weights[f"{block}.think.0.bias"])
    both = weights[f"{block}.think.1.both.weight"] @ normed + weights[f"{block}.think.1.both.bias"]
    value, gate = np.split(both, 2)
    return (
        weights[f"{block}.think.3.weight"] @ (value * np.maximum(gate, 0)) + weights[f"{block}.think.3.bias"]
    )


def _by_loops(transformer: FeatureTransformer, row: Array, unknown: Array) -> Array:
    weights = _weights(transformer)
    tokens = [weights["summary"][0]]
    for column in range(COLUMNS):
        known = weights["column"][column] + row[column] * weights["slope"][column]
        tokens.append(weights["unknown"][column] if unknown[column] else known)
    for number in range(len(transformer.blocks)):
        block = f"blocks.{number}"
        normed = tokens
        if number > 0:
            norm = weights[f"{block}.norm.weight"], weights[f"{block}.norm.bias"]
            normed = [_normed(token, *norm) for token in tokens]
        tokens = [t + found for t, found in zip(tokens, _attended(normed, weights, block), strict=True)]
        tokens = [token + _thought(token, weights, block) for token in tokens]
    last = np.maximum(_normed(tokens[0], weights["answer.0.weight"], weights["answer.0.bias"]), 0)
    return weights["answer.2.weight"] @ last + weights["answer.2.bias"]


def test_the_transformer_is_what_loops_over_the_columns_compute() -> None:
    transformer, values = _transformer(), _values()
    found = transformer(values, UNKNOWN)
    for row in range(len(values)):
        expected = _by_loops(transformer, values[row].double().numpy(), UNKNOWN[row].numpy())
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_it_learns_as_it_answers() -> None:
    transformer, values = _transformer(), _values()
    with torch.no_grad():
        quiet = transformer(values, UNKNOWN)  # torch may take another road when nobody asks for a gradient
    torch.testing.assert_close(transformer(values, UNKNOWN), quiet, rtol=1e-4, atol=1e-5)


def test_what_is_unknown_is_its_columns_own_embedding() -> None:
    transformer, values = _transformer(), _values()
    before = transformer(values, UNKNOWN)
    other = torch.where(UNKNOWN, 9.0, values)
    torch.testing.assert_close(transformer(other, UNKNOWN), before)
    transformer.unknown.data[3] += 1.0  # of the column that rows 1 and 2 do not know
    moved = (transformer(values, UNKNOWN) - before).abs().amax(dim=1) > 1e-4
    assert moved.tolist() == [False, True, True]


def test_the_order_of_columns_means_nothing_beside_their_embeddings() -> None:
    transformer, values = _transformer(), _values()
    before = transformer(values, UNKNOWN)
    order = torch.tensor([3, 0, 4, 1, 2])
    for embeddings in (transformer.slope, transformer.column, transformer.unknown):
        embeddings.data = embeddings.data[order]
    torch.testing.assert_close(transformer(values[:, order], UNKNOWN[:, order]), before, rtol=1e-4, atol=1e-5)


def test_the_table_encoder_gives_it_standardised_values_beside_the_linear_road() -> None:
    torch.manual_seed(0)
    columns = (FeatureColumn(name="age", mean=70, sd=10), FeatureColumn(name="sex", level="M"))
    encoder = FeatureEncoder(columns, 8, 0.0, "ft_transformer").eval()
    found = encoder(torch.tensor([[80.0, 1.0], [1e6, torch.nan]]))
    values, unknown = torch.tensor([[1.0, 1.0], [6.0, 0.0]]), torch.tensor([[False, False], [False, True]])
    road = encoder.linear(torch.cat([values, unknown.float()], dim=1))
    torch.testing.assert_close(found, road + encoder.transformer(values, unknown))


@pytest.mark.parametrize("fusion", ["vdafm_pooled", "late"])
def test_a_network_with_it_answers_all_seven_patterns_and_every_parameter_gets_a_gradient(
    fusion: str,
) -> None:
    torch.manual_seed(0)
    network, batch = (
        network_with_opinions(small_config(table_encoder="ft_transformer", fusion=fusion)).eval(),
        small_batch(PATTERNS),
    )
    together = network(batch)
    for row in range(len(PATTERNS)):
        alone = network(batch.map(lambda tensor, row=row: tensor[row : row + 1])).logit
        torch.testing.assert_close(alone[0], together.logit[row], rtol=1e-4, atol=1e-5)
    total_loss(network.scored(batch, together), 0.0, 0.0).total.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_table_encoders_of_params_are_those_of_the_network() -> None:
    assert TrainParams.model_fields["table_encoder"].annotation == TableEncoderName
    assert {*get_args(TableEncoderName)} == {"mlp", "ft_transformer"}
