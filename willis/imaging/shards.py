"""The training arrays: uint8 codes of every study in a few files that can be memory-mapped.

Arrays are (X, Y, Z) in RAS+: the X index grows towards the patient's right, Y towards the front, Z upwards.
Code 0 is background in every sequence and decodes to 0.0; codes 1 to 255 span the sequence's range linearly.
"""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import numpy.typing as npt

from willis.cohort.schema import Sequence
from willis.errors import ShapeError, StepError

if TYPE_CHECKING:
    from torch import Tensor

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

PLANE_SIZE = 96
NUM_PLANES = 3


@dataclass(frozen=True)
class CodeRange:
    """What code 1 and code 255 of a sequence stand for, and in which unit."""

    low: float
    high: float
    unit: str


CODE_RANGES: dict[Sequence, CodeRange] = {
    "dwi": CodeRange(-4.0, 12.0, "robust standard deviations from the brain's median"),
    "flair": CodeRange(-6.0, 10.0, "robust standard deviations from the brain's median"),
    "adc": CodeRange(0.0, 4.0, "1e-3 mm^2/s"),
    "lesion": CodeRange(1 / 255, 1.0, "share of the voxel that is lesion"),
}


def encode(values: Float32, brain: Bool, sequence: Sequence) -> UInt8:
    """Code one volume.

    Args:
        values: (X, Y, Z) in the unit of `CODE_RANGES[sequence]`.
        brain: (X, Y, Z), False where the code is 0; for `lesion`, a share below 1/510 is 0 as well.
        sequence: which range applies.

    Returns:
        (X, Y, Z) codes; values outside the range are clipped to it.
    """
    span = CODE_RANGES[sequence]
    if sequence == "lesion":
        return np.where(brain, np.rint(np.clip(values, 0, 1) * 255), 0).astype(np.uint8)
    scaled = np.clip((values - span.low) * (254 / (span.high - span.low)), 0, 254)
    return np.where(brain, np.rint(scaled) + 1, 0).astype(np.uint8)


@overload
def decode(codes: "Tensor", sequences: tuple[Sequence, ...]) -> "Tensor": ...
@overload
def decode(codes: UInt8, sequences: tuple[Sequence, ...]) -> Float32: ...
def decode(codes: Any, sequences: tuple[Sequence, ...]) -> Any:
    """Turn codes back into values; the inverse of `encode` within half a code step.

    Args:
        codes: (..., C, X, Y, Z) uint8, a numpy array or a torch tensor on any device.
        sequences: names of the C channels.

    Returns:
        float32 of the same shape and kind: dwi and flair standardised (about zero mean and unit variance
        in the brain), adc in 1e-3 mm^2/s, lesion as a share 0 to 1; background is 0.

    Raises:
        ShapeError: the channels are not as many as the sequences.
    """
    if codes.ndim < 4 or codes.shape[-4] != len(sequences):
        raise ShapeError(
            f"codes have shape {tuple(codes.shape)}; axis -4 must hold {len(sequences)} channels {sequences}"
        )
    steps = [(CODE_RANGES[s].high - CODE_RANGES[s].low) / 254 for s in sequences]
    offsets = [CODE_RANGES[s].low - step for s, step in zip(sequences, steps, strict=True)]
    if isinstance(codes, np.ndarray):
        scale = np.array(steps, np.float32)[:, None, None, None]
        offset = np.array(offsets, np.float32)[:, None, None, None]
        return np.where(codes > 0, codes.astype(np.float32) * scale + offset, np.float32(0))
    values = codes.float()
    scale_t = values.new_tensor(steps)[:, None, None, None]
    offset_t = values.new_tensor(offsets)[:, None, None, None]
    return values.mul_(scale_t).add_(offset_t).mul_(codes > 0)


class StudyArrays:
    """Every kept study's codes, memory-mapped; opening costs no reading and pickling costs no copy."""

    def __init__(
        self,
        folder: Path,
        sequences: tuple[Sequence, ...],
        planes: tuple[str, ...],
        rows: list[tuple[str, int, int]],
        sequence_present: Bool,
        planes_present: Bool,
    ) -> None:
        self.folder = folder
        self.sequences = sequences
        self.planes = planes
        self.sequence_present = sequence_present
        self.planes_present = planes_present
        self.patient_ids: tuple[str, ...] = tuple(row[0] for row in rows)
        self._places = [(shard, row) for _, shard, row in rows]
        self._shards: dict[str, npt.NDArray[Any]] = {}

    @classmethod
    def open(cls, ingest_dir: Path) -> Self:
        """Open what `ingest` wrote.

        Args:
            ingest_dir: the step's output folder, with studies.parquet, ingest.json and shards/.

        Raises:
            StepError: the folder is not a finished output of `ingest`.
        """
        import json

        import pandas as pd

        try:
            summary = json.loads((ingest_dir / "ingest.json").read_text())
            studies = pd.read_parquet(ingest_dir / "studies.parquet")
        except FileNotFoundError as error:
            raise StepError(
                f"{error.filename} is missing; run `willis ingest` to make {ingest_dir}"
            ) from None
        sequences = tuple(summary["sequences"])
        present = studies[[f"has_{name}" for name in sequences]].to_numpy(bool).reshape(-1, len(sequences))
        rows = list(
            zip(
                studies["patient_id"].astype(str),
                studies["shard"].astype(int),
                studies["row"].astype(int),
                strict=True,
            )
        )
        planes_present = studies["has_planes"].to_numpy(bool)
        return cls(Path(ingest_dir), sequences, tuple(summary["planes"]), rows, present, planes_present)

    @classmethod
    def without_images(cls, patient_ids: Iterable[str]) -> Self:
        """Patients of whom nobody has an image: no sequence, no plane, nothing on disk."""
        rows = [(patient, 0, row) for row, patient in enumerate(patient_ids)]
        return cls(Path(), (), (), rows, np.zeros((len(rows), 0), bool), np.zeros(len(rows), bool))

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[Callable[[Path], "StudyArrays"], tuple[Path]]:
        """Travel to another process as a path: a pickled memmap would carry every voxel."""
        return type(self).open, (self.folder,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the grid; zeros where there are no volumes."""
        return self.volume(0).shape[1:] if self.sequences else (0, 0, 0)

    def summary(self) -> bytes:
        """ingest.json, which stands for the voxels; nothing where nobody has an image."""
        return (self.folder / "ingest.json").read_bytes() if self.sequences or self.planes else b""

    def volume(self, index: int) -> UInt8:
        """Return study `index` as a read-only view (C, X, Y, Z) on the file."""
        return self._row("volumes", index)

    def planes_of(self, index: int) -> UInt8:
        """Return the planes of study `index`, (P, H, W); zeros when it has none, P = 0 when none are set."""
        if not self.planes:
            return np.zeros((0, PLANE_SIZE, PLANE_SIZE), np.uint8)
        return self._row("planes", index)

    def _row(self, kind: str, index: int) -> UInt8:
        shard, row = self._places[index]
        name = shard_name(kind, shard)
        if name not in self._shards:
            self._shards[name] = np.load(self.folder / "shards" / name, mmap_mode="r")
        view: UInt8 = self._shards[name][row]
        return view


def shard_name(kind: str, shard: int) -> str:
    """Return the file name of shard number `shard`; kind is `volumes` or `planes`."""
    return f"{kind}-{shard:03d}.npy"


class ShardWriter:
    """Append studies to shards one by one; a shard's header learns its length when the shard is full.

    Use as a context manager; `add` returns where the study went.
    """

    def __init__(self, folder: Path, kind: str, item_shape: tuple[int, ...], studies_per_shard: int) -> None:
        self.folder = folder
        self.kind = kind
        self.item_shape = item_shape
        self.studies_per_shard = studies_per_shard
        self._shard = 0
        self._rows = 0
        self._file: io.BufferedWriter | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, codes: UInt8) -> tuple[int, int]:
        """Append one study.

        Args:
            codes: uint8 of `item_shape`.

        Returns:
            Shard number and row in it.

        Raises:
            ShapeError: codes are of another shape or kind than the shard.
            OSError: the disk is full or the folder not writable.
        """
        if codes.shape != self.item_shape or codes.dtype != np.uint8:
            raise ShapeError(
                f"codes are {codes.dtype} {codes.shape}; shard {self.kind} holds uint8 {self.item_shape}"
            )
        if self._rows == self.studies_per_shard:
            self._close()
            self._shard, self._rows = self._shard + 1, 0
        if self._file is None:
            self._file = (self.folder / shard_name(self.kind, self._shard)).open("wb")
            self._file.write(self._header(0))
        self._file.write(np.ascontiguousarray(codes).data)
        self._rows += 1
        return self._shard, self._rows - 1

    def _header(self, rows: int) -> bytes:
        # numpy pads the first axis for growth, so the header of any length has the same size
        header = io.BytesIO()
        fields = {"descr": "|u1", "fortran_order": False, "shape": (rows, *self.item_shape)}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def _close(self) -> None:
        if self._file is None:
            return
        try:
            self._file.seek(0)
            self._file.write(self._header(self._rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
            self._file = None
