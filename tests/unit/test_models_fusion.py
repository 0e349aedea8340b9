"""Each fusion against its equation, and the token fusion as a function of tokens that are real."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from willis.models.fusion import FUSIONS, LATE, FusionShape, Tokens
from willis.models.losses import align_loss, contrast_loss
from willis.params import TrainParams

WIDTH, HEADS, ROWS = 32, 4, 5
SHAPE = FusionShape(WIDTH, 16, layers=2, heads=HEADS)


def _fusion(name: str) -> nn.Module:
    torch.manual_seed(0)
    fusion = FUSIONS[name](SHAPE, 0.0, 0.07).eval()
    for parameter in fusion.parameters():  # what starts at zero no longer is
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return fusion


def _vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)


def _tokens() -> Tokens:
    """Row 0 has no image, row 1 no report; reports are 0, 2, 3, 4 tokens long of 6."""
    torch.manual_seed(2)
    lengths = torch.tensor([3, 0, 2, 4, 6])
    return Tokens(
        image=torch.randn(ROWS, 7, WIDTH),
        image_real=torch.ones(ROWS, 7, dtype=torch.bool) & (torch.arange(ROWS) > 0)[:, None],
        text=torch.randn(ROWS, 6, WIDTH),
        text_real=torch.arange(6) < lengths[:, None],
    )


def _asked(attention: nn.MultiheadAttention, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One query's answer, head by head, key by key."""
    to_query, to_key, to_value = attention.in_proj_weight.chunk(3)
    bias_query, bias_key, bias_value = attention.in_proj_bias.chunk(3)
    q = to_query @ query + bias_query
    answer, size = torch.zeros(WIDTH), WIDTH // HEADS
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        scores = torch.stack([q[at] @ (to_key @ key + bias_key)[at] / math.sqrt(size) for key in keys])
        values = torch.stack([(to_value @ key + bias_value)[at] for key in keys])
        answer[at] = scores.softmax(dim=0) @ values
    return attention.out_proj.weight @ answer + attention.out_proj.bias


def test_the_names_in_params_are_the_fusions_that_exist() -> None:
    assert set(get_args(TrainParams.model_fields["fusion"].annotation)) == {*FUSIONS, LATE}


def test_a_sum_does_not_know_which_side_said_what() -> None:
    fusion, (image, text) = _fusion("add"), _vectors()
    torch.testing.assert_close(fusion(image, text).vector, fusion.join(image + text))
    torch.testing.assert_close(fusion(image, text).vector, fusion(text, image).vector)


def test_cross_attention_is_what_loops_over_heads_and_keys_give() -> None:
    fusion, (image, text) = _fusion("cross_attention"), _vectors()
    said = fusion(image, text).vector
    for row in range(ROWS):
        both = torch.stack([image[row], text[row]])
        seen = image[row] + _asked(fusion.image_asks, image[row], both)
        read = text[row] + _asked(fusion.text_asks, text[row], both)
        expected = fusion.join(fusion.norm((seen + read) / 2))
        torch.testing.assert_close(said[row], expected, rtol=1e-4, atol=1e-5)


def test_queries_of_the_cross_attention_learn() -> None:
    fusion = _fusion("cross_attention")
    fusion(*_vectors()).vector.sum().backward()
    for attention in (fusion.image_asks, fusion.text_asks):
        assert attention.in_proj_weight.grad[:WIDTH].abs().sum() > 0


def test_daft_scales_and_shifts_the_image_by_what_both_say() -> None:
    fusion, (image, text) = _fusion("daft"), _vectors()
    said = fusion.condition(torch.cat([image, text], dim=1))
    expected = fusion.join((1 + said[:, :WIDTH]) * image + said[:, WIDTH:])
    torch.testing.assert_close(fusion(image, text).vector, expected)
    nn.init.zeros_(fusion.condition[-1].weight)
    nn.init.zeros_(fusion.condition[-1].bias)
    torch.testing.assert_close(fusion(image, text).vector, fusion.join(image))


def test_the_token_fusion_is_what_its_equations_give_row_by_row_without_padding() -> None:
    fusion, (image, text), tokens = _fusion("vdafm_token"), _vectors(), _tokens()
    pair = fusion(image, text, tokens).pair
    for row in range(ROWS):
        image_token, text_token = _slow_tokens(fusion, image[row], text[row], tokens, row)
        torch.testing.assert_close(pair.image_token[row], image_token, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pair.text_token[row], text_token, rtol=1e-4, atol=1e-4)


def _slow_tokens(
    fusion: nn.Module, v: torch.Tensor, e_t: torch.Tensor, tokens: Tokens, row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 18 to 21 of one row, from the tokens that are real alone."""
    images = [fusion.to_text_space(v), *fusion.image_norm(tokens.image[row][tokens.image_real[row]])]
    texts = [e_t, *fusion.text_norm(tokens.text[row][tokens.text_real[row]])]
    gamma, beta = fusion.condition(v).chunk(2)
    texts = [(1 + gamma) * token + beta for token in texts]
    for layer in fusion.layers:
        ours = torch.stack([layer.image_norm(token) for token in images])
        theirs = torch.stack([layer.text_norm(token) for token in texts])
        images = [t + _asked(layer.image_asks, q, theirs) for t, q in zip(images, ours, strict=True)]
        texts = [t + _asked(layer.text_asks, q, ours) for t, q in zip(texts, theirs, strict=True)]
        images = [token + layer.image_mlp(token) for token in images]
        texts = [token + layer.text_mlp(token) for token in texts]
    ends = (fusion.image_end, images), (fusion.text_end, texts)
    first, second = (
        layer_norm(side[0] + torch.stack(side).mean(0), (WIDTH,), end.weight, end.bias) for end, side in ends
    )
    return first, second


def test_padding_changes_no_answer_and_gets_no_gradient() -> None:
    fusion, (image, text), tokens = _fusion("vdafm_token"), _vectors(), _tokens()
    said = fusion(image, text, tokens)
    more = torch.full((ROWS, 5, WIDTH), 1e3, requires_grad=True)
    noise = 9.0 * ~tokens.text_real[..., None]
    padded = replace(
        tokens,
        text=torch.cat([tokens.text + noise, more], dim=1),
        text_real=torch.cat([tokens.text_real, torch.zeros(ROWS, 5, dtype=torch.bool)], dim=1),
    )
    again = fusion(image, text, padded)
    torch.testing.assert_close(again.vector, said.vector)
    again.vector.sum().backward()
    assert more.grad.abs().sum() == 0


def test_every_real_token_moves_the_answer_of_its_row_alone() -> None:
    fusion, (image, text), tokens = _fusion("vdafm_token"), _vectors(), _tokens()
    said = fusion(image, text, tokens).vector
    for side in ("image", "text"):
        values, real = getattr(tokens, side), getattr(tokens, f"{side}_real")
        for row, at in real.nonzero().tolist():
            other = values.clone()
            other[row, at] += torch.randn(WIDTH)
            moved = (fusion(image, text, replace(tokens, **{side: other})).vector - said).abs().amax(dim=1)
            assert moved[row] > 1e-6 and moved[torch.arange(ROWS) != row].max() < 1e-6, (side, row, at)


@pytest.mark.parametrize("name", ["vdafm_pooled", "vdafm_token"])
def test_both_forms_feed_both_alignment_losses(name: str) -> None:
    fusion, valid = _fusion(name), torch.tensor([0, 0, 1, 1, 1], dtype=torch.bool)
    pair = fusion(*_vectors(), _tokens()).pair
    (contrast_loss(pair.image, pair.text, valid, pair.scale) + align_loss(pair, valid)).backward()
    left = {name for name, p in fusion.named_parameters() if p.grad is None}
    assert {name.split(".")[0] for name in left} == {"join"}
