"""Controls: the same network with less to go on. What it loses is what that modality was worth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from willis.cohort.schema import MODALITIES
from willis.evaluation.comparison import Scored
from willis.evaluation.metrics import Numbers
from willis.evaluation.results import FeatureShare, ModalityShare
from willis.inference import Case, Encodings, Prediction, Predictor
from willis.models.decision import proper_subsets, subset_name


def subset_controls(predictor: Predictor, encodings: Encodings) -> tuple[Scored, ...]:
    """The six proper subsets of the modalities, by presence masks; nothing is trained again."""
    return tuple(
        Scored(
            subset_name(subset),
            predictor.probabilities(encodings, sorted(subset))[None],
            note=_absent(encodings, subset),
        )
        for subset in proper_subsets(predictor.config.use_modalities)
    )


def image_controls(predictor: Predictor, encodings: Encodings, cases: Sequence[Case]) -> tuple[Scored, ...]:
    """The image without its voxels (learned templates stand in), and without its measured facts."""
    if predictor.network.image is None or not predictor.config.fact_columns:
        return ()
    facts_alone = [replace(case, volume=None, planes=None, text=None) for case in cases]
    voxels_alone = [replace(case, facts=None, text=None) for case in cases]
    return tuple(
        Scored(name, predictor.probabilities(_with_image(encodings, predictor.encode(changed)))[None])
        for name, changed in (
            ("image replaced by its facts", facts_alone),
            ("image without its facts", voxels_alone),
        )
    )


def text_controls(
    predictor: Predictor,
    encodings: Encodings,
    cases: Sequence[Case],
    constant: str,
    num_permutations: int,
    seed: int,
) -> tuple[Scored, ...]:
    """Reports dealt to other patients, and one report for everybody.

    Args:
        predictor: the model.
        encodings: of `cases`.
        cases: test patients; who has no report keeps having none.
        constant: the report that stands in for all.
        num_permutations: how often reports are dealt anew.
        seed: of the dealing.
    """
    holders = [k for k, case in enumerate(cases) if case.present()[1]]
    if predictor.network.text is None or len(holders) < 2:
        return ()
    generator = np.random.default_rng(seed)
    permuted = np.stack(
        [_permuted(predictor, encodings, holders, generator) for _ in range(num_permutations)]
    )
    texts = [constant if k in set(holders) else None for k in range(len(cases))]
    same = predictor.probabilities(predictor.with_texts(encodings, texts))
    return (
        Scored("text permuted", permuted, note=f"mean over {num_permutations} deals of the reports"),
        Scored("constant text", same[None], note="everybody has the commonest report of the training split"),
    )


def commonest(texts: Sequence[str]) -> str:
    """The text that occurs most often; the alphabet decides between equals."""
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text)) if counts else ""


def modality_shares(
    predictions: Sequence[Prediction],
) -> tuple[tuple[ModalityShare, ...], dict[str, Numbers]]:
    """Mean and mean absolute Shapley value per modality, and every patient's, over those who have it."""
    values = {
        name: np.array([p.attribution[name] for p in predictions if name in p.attribution])
        for name in MODALITIES
    }
    shares = tuple(
        ModalityShare(
            modality=name,
            num_patients=found.size,
            mean=float(found.mean()),
            mean_absolute=float(np.abs(found).mean()),
        )
        for name, found in values.items()
        if found.size
    )
    return shares, values


def column_shares(predictor: Predictor, encodings: Encodings) -> tuple[FeatureShare, ...]:
    """How far the probability moves when one known clinical value is hidden, largest first."""
    if predictor.network.table is None:
        return ()
    whole = predictor.probabilities(encodings)
    has_table = encodings.present[:, MODALITIES.index("table")].cpu().numpy()
    shares = []
    for column in dict.fromkeys(c.name for c in predictor.config.table_columns):
        at = [k for k, c in enumerate(predictor.config.table_columns) if c.name == column]
        known = has_table & ~encodings.table[:, at].isnan().all(dim=1).cpu().numpy()
        if known.any():
            hidden = predictor.probabilities(predictor.without_column(encodings, column))
            moved = float(np.abs(whole - hidden)[known].mean())
            shares.append(FeatureShare(column=column, num_patients=int(known.sum()), mean_absolute=moved))
    return tuple(sorted(shares, key=lambda share: -share.mean_absolute))


def _permuted(
    predictor: Predictor, encodings: Encodings, holders: list[int], generator: np.random.Generator
) -> Numbers:
    """Deal the reports' vectors among those who have one; nobody keeps their own when avoidable."""
    order = np.arange(len(encodings))
    shuffled = generator.permutation(holders)
    order[shuffled] = np.roll(shuffled, 1)  # one cycle through a random order: no fixed point
    return predictor.probabilities(predictor.with_text_of(encodings, order.tolist()))


def _with_image(encodings: Encodings, other: Encodings) -> Encodings:
    """The same cases, presence included, with the image vectors of `other`."""
    return replace(encodings, encoded=encodings.encoded.with_image_of(other.encoded))


def _absent(encodings: Encodings, subset: frozenset[str]) -> str:
    keep = [name in subset for name in MODALITIES]
    missing = int((~encodings.present[:, keep].any(dim=1)).sum())
    return f"{missing} patients have none of it and get the training prevalence" if missing else ""
