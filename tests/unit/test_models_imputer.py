"""Guessing absent modalities from those that are there: what is seen, what is scored, what is taught."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.fixtures.arrays import TinyCohort, tiny_job
from willis.models.imputer import Imputation, Imputer
from willis.models.losses import join_ranks, total_loss
from willis.models.network import Batch, NetworkConfig, TrimodalNetwork
from willis.models.table import FeatureColumn
from willis.params import TrainParams
from willis.training.loop import World, fit

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (22, 26, 10)
PATTERNS = [pattern for pattern in product([False, True], repeat=3) if any(pattern)]
COLUMNS = (FeatureColumn(name="age", mean=70, sd=13),)


def _network(**changes: object) -> TrimodalNetwork:
    torch.manual_seed(0)
    values = {
        "sequences": ("dwi",), "shape": SHAPE, "table_columns": COLUMNS, "text_encoder": "none", "width": 16,
        "fusion_heads": 4, "contrast_width": 8, "dropout": 0.0, "absent": "imputed",
    }  # fmt: skip
    return TrimodalNetwork(NetworkConfig.model_validate(values | changes))


def _opinionated(network: TrimodalNetwork) -> TrimodalNetwork:
    """Every parameter away from where it starts."""
    torch.manual_seed(1)
    for weights in network.parameters():
        weights.data.add_(0.2 * torch.randn_like(weights))
    return network


def _batch(present: list[tuple[bool, ...]], rows: slice = slice(None)) -> Batch:
    torch.manual_seed(2)
    n = len(present)
    batch = Batch(
        volume=torch.randint(0, 256, (n, 1, *SHAPE), dtype=torch.uint8),
        sequence_present=torch.ones(n, 1, dtype=torch.bool), planes=None,
        planes_present=torch.zeros(n, dtype=torch.bool), facts=torch.zeros(n, 0),
        table=torch.randn(n, 1) * 10 + 70, text=torch.randn(n, 384), modality_present=torch.tensor(present),
        outcome=torch.arange(n) % 2.0, grade=torch.full((n,), torch.nan), weight=torch.ones(n),
    )  # fmt: skip
    return batch.map(lambda tensor: tensor[rows])


def _guesses(imputer: Imputer, vectors: torch.Tensor, pattern: tuple[bool, ...]) -> torch.Tensor:
    present = torch.tensor([pattern]).expand(len(vectors), 3)
    guessed, _ = imputer(vectors, present, torch.zeros(3, vectors.shape[2]))
    return guessed


def _imputer(width: int = 6) -> Imputer:
    torch.manual_seed(0)
    imputer = Imputer(width)
    for weights in imputer.parameters():
        weights.data.normal_()
    return imputer


def test_a_guess_sees_the_other_present_modalities_and_nothing_else() -> None:
    imputer = _imputer()
    for pattern, changed in product(PATTERNS, range(3)):
        vectors = torch.randn(4, 3, 6)
        other = vectors.clone()
        other[:, changed] = torch.nan if not pattern[changed] else 9.0
        before, after = _guesses(imputer, vectors, pattern), _guesses(imputer, other, pattern)
        moved = [not torch.equal(before[:, m], after[:, m]) for m in range(3)]
        assert moved == [pattern[changed] and m != changed for m in range(3)], (pattern, changed)


def test_which_modalities_are_there_changes_a_guess_even_where_their_vectors_are_zero() -> None:
    imputer, nothing = _imputer(), torch.zeros(1, 3, 6)
    found = [_guesses(imputer, nothing, pattern)[0, 0] for pattern in PATTERNS if not pattern[0]]
    assert all(not torch.allclose(found[i], found[j]) for i in range(3) for j in range(i))


def test_present_modalities_are_scored_against_what_they_say_and_absent_ones_never() -> None:
    imputer, vectors, start = _imputer(), torch.randn(7, 3, 6), torch.randn(3, 6)
    vectors[~torch.tensor(PATTERNS)] = torch.nan
    guessed, imputation = imputer(vectors, torch.tensor(PATTERNS), start)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0, 1])
    errors = []
    for row, pattern in enumerate(PATTERNS):
        for m in range(3):
            others = [vectors[row, k] if pattern[k] and k != m else torch.zeros(6) for k in range(3)]
            bits = torch.tensor([float(pattern[k] and k != m) for k in range(3)])
            expected = start[m] + imputer.guesses[m](torch.cat([*others, bits]))
            torch.testing.assert_close(guessed[row, m], expected, rtol=1e-4, atol=1e-5)
            if pattern[m] and sum(pattern) > 1 and weight[row]:
                errors.append(np.mean((expected - vectors[row, m]).detach().numpy() ** 2))
    assert len(errors) == 7
    assert float(imputation.loss(weight).detach()) == pytest.approx(float(np.mean(errors)), rel=1e-4)


def test_nothing_to_guess_costs_nothing_and_is_still_attached() -> None:
    imputer = _imputer()
    _, imputation = imputer(torch.randn(2, 3, 6), torch.tensor([PATTERNS[0]] * 2), torch.zeros(3, 6))
    loss = imputation.loss(torch.ones(2))
    loss.backward()
    assert float(loss.detach()) == 0.0 and all(weights.grad is not None for weights in imputer.parameters())


def test_guessing_teaches_neither_the_encoders_it_reads_nor_those_it_aims_at() -> None:
    network = _opinionated(_network())
    output = network(_batch(PATTERNS))
    assert output.imputation is not None
    output.imputation.loss(torch.ones(7)).backward()
    taught = {
        name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert taught == {"imputer", "absent"}


@pytest.mark.parametrize("fusion", ["vdafm_pooled", "late"])
def test_every_parameter_gets_a_gradient_whoever_is_present(fusion: str) -> None:
    for present in (PATTERNS, [(True, True, True)] * 3, [(False, True, False)] * 3):
        network = _opinionated(_network(fusion=fusion))
        batch = _batch(present)
        total_loss(network.scored(batch, network(batch)), 0.0, 0.0, lambda_imputation=0.0).total.backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_network_that_imputes_starts_as_the_one_with_learned_vectors() -> None:
    imputes, learned = _network().eval(), _network(absent="learned").eval()
    batch = _batch(PATTERNS)
    assert torch.equal(imputes(batch).logit, learned(batch).logit)
    for name, value in learned.state_dict().items():
        assert torch.equal(imputes.state_dict()[name], value), name
    assert learned(batch).imputation is None
    assert learned.scored(batch, learned(batch)).imputation is None


def test_a_contract_that_does_not_say_means_learned_vectors() -> None:
    told = _network().config.model_dump()
    del told["absent"]
    assert NetworkConfig.model_validate(told).absent == "learned"


def test_the_answer_to_an_absent_modality_follows_what_the_others_say() -> None:
    """The image is the report turned round; once guessed, a report alone is answered as both are."""
    torch.manual_seed(3)
    imputer, turn = Imputer(6), torch.linalg.qr(torch.randn(6, 6)).Q
    optimizer = torch.optim.Adam(imputer.parameters(), lr=1e-2)
    both = torch.tensor([[True, True, False]])
    for _ in range(300):
        report = torch.randn(64, 6)
        vectors = torch.stack([report @ turn, report, report], dim=1)
        _, imputation = imputer(vectors, both.expand(64, 3), torch.zeros(3, 6))
        optimizer.zero_grad()
        imputation.loss(torch.ones(64)).backward()
        optimizer.step()
    report = torch.randn(100, 6)
    guessed = _guesses(imputer, torch.stack([report * torch.nan, report, report * torch.nan], dim=1),
                       (False, True, False))  # fmt: skip
    left = (guessed[:, 0] - report @ turn).square().mean() / (report @ turn).var()
    assert float(left) < 0.1


def test_training_records_how_well_it_guesses_and_by_default_guesses_nothing(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    small = {"epochs": 2, "width": 16, "fusion_heads": 4, "contrast_width": 8, "num_workers": 1}
    imputes = TrainParams(absent="imputed", learning_rate=3e-3, **small)  # type: ignore[arg-type]
    history = fit(tiny_job(tiny_ingest, tmp_path / "imputed", imputes), World()).history
    losses = [record.imputation_loss for record in history]
    assert losses[0] is not None and losses[1] is not None and losses[1] < losses[0]
    one = TrainParams(**(small | {"epochs": 1}))  # type: ignore[arg-type]
    assert fit(tiny_job(tiny_ingest, tmp_path / "learned", one), World()).history[0].imputation_loss is None


def _step(rank: int, world: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Gradients of a second pass, after the spread of ISDA has taken in the first one; and that spread."""
    network = _opinionated(_network(isda=True))
    model = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
    batch = _batch([*PATTERNS, (True, True, True)], slice(rank, None, world))
    with torch.no_grad():
        first = join_ranks(network.scored(batch, network(batch)))
    assert network.spread is not None and first.embedding is not None
    network.spread.take_in(first.embedding, first.outcome, first.weight)
    scored = join_ranks(network.scored(batch, model(batch)))
    losses = total_loss(scored, 0.02, 0.2, lambda_imputation=0.7, isda=0.5)
    losses.total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return float(losses.total.detach()), gradients | {"covariance": network.spread.covariance}


def _one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    torch.save(_step(rank, 2), folder / f"rank-{rank}")
    dist.destroy_process_group()


def test_loss_and_gradients_of_two_ranks_equal_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(_one_rank, args=(tmp_path,), nprocs=2)
    loss, gradients = _step(0, 1)
    assert gradients["covariance"].any()
    for rank in range(2):
        their_loss, theirs = torch.load(tmp_path / f"rank-{rank}", weights_only=True)
        assert their_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_weight_of_guessing_counts_in_the_whole() -> None:
    network = _opinionated(_network())
    batch = _batch(PATTERNS)
    scored = network.scored(batch, network(batch))
    none, some = (total_loss(scored, 0.02, 0.2, lambda_imputation=weight) for weight in (0.0, 0.5))
    assert isinstance(scored.imputation, Imputation) and some.imputation is not None
    assert float(some.total) == pytest.approx(float(none.total) + 0.5 * float(some.imputation), rel=1e-5)
