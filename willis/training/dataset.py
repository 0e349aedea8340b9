"""Cases on disk to batches: memory-mapped volumes, the training table, and who is in which batch.

Everything random is drawn from (seed, epoch, row), never from a running state: a run that was killed and
goes on, or that uses another number of workers, sees the same patients, the same dropped modalities, in the
same order.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from willis.cohort.schema import CLINICAL_COLUMNS, MODALITIES
from willis.errors import CohortError, ParamsError, ShapeError, StepError
from willis.imaging.shards import StudyArrays
from willis.models.fusion import LATE
from willis.models.network import Batch, NetworkConfig
from willis.models.table import encode_rows, fit_columns
from willis.models.text import TEXT_WIDTH, Embedded, TextEncoder, TokenStates, embed
from willis.params import TrainParams

if TYPE_CHECKING:
    import pandas as pd

Rows = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Item = TypeVar("Item")

CLINICAL_NAMES = tuple(column.name for column in CLINICAL_COLUMNS)
NOT_MEASURED = ("f_event_time", "f_event_timestamp", "f_patient_id", "f_study_id", "f_created")


@dataclass(frozen=True)
class Cases:
    """All studies of a training table, in the order of the shards; N studies.

    Attributes:
        facts: as `encode_rows` reads them, (N, Ff); table (N, Ft); text embeddings (N, T).
        modality_present: (N, 3); image, text, table.
        outcome: (N,) 1 poor, 0 good, NaN not known.
        grade: (N,) Rankin score 0 to 6, NaN not known.
        split: (N,) names of `schema.SPLITS`.
        text_tokens: states of the reports' tokens; None unless the fusion reads tokens.
    """

    arrays: StudyArrays
    facts: Float32
    table: Float32
    text: Float32
    modality_present: Bool
    outcome: Float32
    grade: Float32
    split: npt.NDArray[np.str_]
    text_tokens: TokenStates | None = None

    def __len__(self) -> int:
        return len(self.outcome)

    def rows(self, split: str, *, labelled_only: bool) -> Rows:
        """Studies of one split that have anything to look at."""
        kept = (self.split == split) & self.modality_present.any(axis=1)
        return np.flatnonzero(kept & ~np.isnan(self.outcome) if labelled_only else kept)

    def digest(self) -> str:
        """sha256 over everything a training run reads except the voxels, which ingest.json stands for."""
        summed = hashlib.sha256(self.arrays.summary())
        arrays = (self.facts, self.table, self.text, self.modality_present, self.outcome, self.grade)
        for array in arrays:
            summed.update(np.ascontiguousarray(array).tobytes())
        if self.text_tokens is not None:
            summed.update(self.text_tokens.values.tobytes() + self.text_tokens.real.tobytes())
        summed.update("\n".join([*self.arrays.patient_ids, *self.split.tolist()]).encode())
        return summed.hexdigest()


def read_table(features: Path, arrays: StudyArrays) -> "pd.DataFrame":
    """Read training_table.parquet and check that its rows are the shards' rows.

    Raises:
        StepError: `featurize` has not finished.
        ShapeError: rows are missing or in another order than the shards.
    """
    import pandas as pd

    path = features / "training_table.parquet"
    if not path.exists():
        raise StepError(f"{path} is missing; run `willis featurize` first")
    frame = pd.read_parquet(path)
    if tuple(frame["patient_id"].astype(str)) != arrays.patient_ids:
        raise ShapeError(
            f"{path} has {len(frame)} rows that are not the {len(arrays)} studies of {arrays.folder} in "
            "their order; run `willis featurize` again on this ingest"
        )
    return frame


def fit_config(
    frame: "pd.DataFrame",
    arrays: StudyArrays,
    params: TrainParams,
    encoder: TextEncoder | None = None,
    clinical: Iterable[str] = CLINICAL_NAMES,
) -> NetworkConfig:
    """Choose columns, scales and prevalence from the training split alone.

    Args:
        frame: of `read_table`.
        arrays: the shards.
        params: section `train`.
        encoder: of the reports; None leaves the packaged one's width.
        clinical: columns of the clinical table; those that `frame` lacks are left out.

    Raises:
        CohortError: the training split has nobody with an outcome, or one class only.
        ParamsError: ISDA is asked of late fusion.
    """
    _check_head(params)
    training = frame[frame["split"] == "train"]
    outcome = training["poor_outcome"].dropna()
    if outcome.nunique() < 2:
        raise CohortError(
            f"{len(outcome)} of {len(training)} training patients have an outcome, {int(outcome.sum())} of "
            "them poor; both classes are needed (column poor_outcome of training_table.parquet; make the "
            "cohort larger or check the mapping of the outcome column: params.yaml, ingest.outcome_column)"
        )
    records = _records(training)
    facts = [name for name in frame.columns if name.startswith("f_") and name not in NOT_MEASURED]
    known = [name for name in clinical if name in frame.columns]
    piecewise = params.numbers == "piecewise"
    return NetworkConfig(
        sequences=arrays.sequences,
        planes=arrays.planes,
        shape=arrays.shape,
        fact_columns=fit_columns(records, facts, piecewise=piecewise) if params.image_facts else (),
        table_columns=fit_columns(records, known, piecewise=piecewise),
        text_encoder=params.text_encoder,
        text_width=encoder.width if encoder else TEXT_WIDTH,
        image_encoder=params.image_encoder,
        table_encoder=params.table_encoder,
        use_modalities=params.use_modalities,
        fusion=params.fusion,
        absent=params.absent,
        roads=params.roads,
        late_weights=params.late_weights,
        isda=params.isda > 0,
        width=params.width,
        contrast_width=params.contrast_width,
        fusion_layers=params.fusion_layers,
        fusion_heads=params.fusion_heads,
        dropout=params.dropout,
        temperature=params.temperature,
        ordinal=params.outcome == "ordinal",
        prevalence=float(outcome.mean()),
    )


def _check_head(params: TrainParams) -> None:
    if params.isda and params.fusion == LATE:
        raise ParamsError(
            f"isda is {params.isda:g}, and it needs the one head that fusion {LATE!r} has not; set "
            "params.yaml: train.isda to 0 or choose another train.fusion"
        )


def read_cases(
    frame: "pd.DataFrame", arrays: StudyArrays, config: NetworkConfig, encoder: TextEncoder | None
) -> Cases:
    """Turn the training table into numbers.

    Args:
        frame: of `read_table`.
        arrays: the shards.
        config: which columns to read.
        encoder: embeds the reports; None leaves the text modality out.
    """
    import pandas as pd

    records = _records(frame)
    has_image = arrays.sequence_present.any(axis=1) | arrays.planes_present
    has_text = frame["has_text"].to_numpy(bool) & (encoder is not None)
    read = _read_texts(frame, has_text, config, encoder)
    used = np.array([name in config.use_modalities for name in MODALITIES])
    present = np.stack([has_image, has_text, frame["has_table"].to_numpy(bool)], axis=1) & used
    return Cases(
        arrays=arrays,
        facts=encode_rows(config.fact_columns, records),
        table=encode_rows(config.table_columns, records),
        text=read.sentence,
        text_tokens=read.tokens,
        modality_present=present,
        outcome=pd.to_numeric(frame["poor_outcome"]).to_numpy(np.float32, na_value=np.nan),
        grade=pd.to_numeric(frame["mrs"]).to_numpy(np.float32, na_value=np.nan),
        split=frame["split"].to_numpy(str),
    )


def encode(
    frame: "pd.DataFrame", arrays: StudyArrays, params: TrainParams, embeddings: Path
) -> tuple[Cases, NetworkConfig]:
    """Fit columns and scales on the training split, then turn the table into numbers.

    Args:
        frame: of `read_table`.
        arrays: the shards.
        params: section `train`.
        embeddings: cache of text embeddings.

    Raises:
        CohortError: as `fit_config`.
        ParamsError: no such text encoder.
    """
    reads = "text" in params.use_modalities
    encoder = TextEncoder.load(params.text_encoder, embeddings, download=True) if reads else None
    config = fit_config(frame, arrays, params, encoder)
    return read_cases(frame, arrays, config, encoder), config


def _read_texts(
    frame: "pd.DataFrame", has_text: Bool, config: NetworkConfig, encoder: TextEncoder | None
) -> Embedded:
    if encoder is None:
        return Embedded(np.zeros((len(frame), config.text_width), np.float32), None)
    stored = zip(frame["text"], has_text, strict=True)
    texts = [str(text) if there else None for text, there in stored]
    return embed(encoder, texts, config.text_width, tokens=config.reads_tokens)


def _records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    cleaned = frame.astype(object).where(frame.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in cleaned.to_dict("records")]


@dataclass(frozen=True)
class Share:
    """One rank's rows of one batch; weight 0 where a row only fills the batch up."""

    rows: Rows
    weight: Float32


def num_steps(num_rows: int, batch_size: int) -> int:
    """Batches per epoch."""
    return -(-num_rows // batch_size)


def shares(order: Rows, batch_size: int, rank: int, world_size: int) -> list[Share]:
    """Cut an order of rows into batches of nearly equal size, and each batch into equal shares per rank.

    Every row counts exactly once over all ranks; ranks bring equally many rows, as gathering asks.

    Args:
        order: rows in the order of this epoch, the same on every rank.
        batch_size: over all ranks.
        rank: whose shares to return.
        world_size: number of ranks.
    """
    batches = np.array_split(order, num_steps(len(order), batch_size))
    local = -(-max(len(batch) for batch in batches) // world_size)
    return [_share(batch, local, rank, world_size) for batch in batches]


def _share(batch: Rows, local: int, rank: int, world_size: int) -> Share:
    padded = np.resize(batch, local * world_size)
    weight = (np.arange(len(padded)) < len(batch)).astype(np.float32)
    return Share(rows=padded[rank::world_size], weight=weight[rank::world_size])


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """Shuffle rows for one epoch; the same for the same seed and epoch, whoever asks."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def dropped(present: Bool, rate: float, rng: np.random.Generator) -> Bool:
    """At `rate`, keep a random non-empty subset of what is present, each subset equally likely.

    With all three modalities present this runs through the seven non-empty patterns.
    """
    there = np.flatnonzero(present)
    if len(there) < 2 or rng.random() >= rate:
        return present
    pattern = int(rng.integers(1, 2 ** len(there)))
    kept = np.zeros_like(present)
    kept[there[[bool(pattern >> bit & 1) for bit in range(len(there))]]] = True
    return kept


def collate(cases: Cases, share: Share, config: NetworkConfig) -> Batch:
    """Copy one share of a batch out of the memory-mapped files.

    Returns:
        A batch on the CPU; volumes stay uint8 codes (the network decodes them on its device).
    """
    rows, arrays = share.rows, cases.arrays
    tokens = cases.text_tokens
    image = "image" in config.use_modalities
    volume = np.stack([arrays.volume(row) for row in rows]) if image else None
    planes = np.stack([arrays.planes_of(row) for row in rows]) if image and config.planes else None
    return Batch(
        volume=None if volume is None else torch.from_numpy(volume),
        sequence_present=torch.from_numpy(arrays.sequence_present[rows]),
        planes=None if planes is None else torch.from_numpy(planes),
        planes_present=torch.from_numpy(arrays.planes_present[rows]),
        facts=torch.from_numpy(cases.facts[rows]),
        table=torch.from_numpy(cases.table[rows]),
        text=torch.from_numpy(cases.text[rows]),
        text_tokens=None if tokens is None else torch.from_numpy(tokens.values[rows]),
        text_real=None if tokens is None else torch.from_numpy(tokens.real[rows]),
        modality_present=torch.from_numpy(cases.modality_present[rows]),
        outcome=torch.from_numpy(cases.outcome[rows]),
        grade=torch.from_numpy(cases.grade[rows]),
        weight=torch.from_numpy(share.weight),
    )


def with_dropout(batch: Batch, share: Share, params: TrainParams, epoch: int, view: int = 0) -> Batch:
    """Drop modalities and sequences for training, row by row, by (seed, epoch, row) and which view it is."""
    from dataclasses import replace

    modalities, sequences = batch.modality_present.numpy().copy(), batch.sequence_present.numpy().copy()
    for place, row in enumerate(share.rows):
        rng = np.random.default_rng([params.seed, epoch, 1 + int(row), view])
        modalities[place] = dropped(modalities[place], params.modality_dropout, rng)
        sequences[place] = dropped(sequences[place], params.sequence_dropout, rng)
    return replace(
        batch, modality_present=torch.from_numpy(modalities), sequence_present=torch.from_numpy(sequences)
    )


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Make the next item in a thread while the present one is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]
