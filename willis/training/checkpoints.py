"""Checkpoints that are whole or not there: written beside, sealed with a digest, then renamed.

A run finds the newest whole one itself; nothing that a killed process left behind is ever read.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from pydantic import BaseModel
from typing_extensions import TypeVar

from willis.errors import BundleError, StepError
from willis.training.metrics import EpochRecord

STATE, SEAL = "state.pt", "complete.json"
R = TypeVar("R", bound=BaseModel, default=EpochRecord)


@dataclass(frozen=True)
class TrainState(Generic[R]):
    """A run after some epoch; R is what it records of one.

    Attributes:
        network: parameters after the last epoch of `history`, which the optimiser moves on.
        optimizer: its state.
        best: parameters of the best epoch so far, the ones to use; the teacher's where there is one.
        best_epoch: number of that epoch, from 0.
        history: one record per epoch so far.
        finished: no epoch is to come.
        teacher: averaged parameters after the last epoch; None without semi-supervision.
    """

    network: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best: dict[str, torch.Tensor]
    best_epoch: int
    history: tuple[R, ...]
    finished: bool
    teacher: dict[str, torch.Tensor] | None = None

    @property
    def next_epoch(self) -> int:
        """Where a resumed run goes on."""
        return len(self.history)


class Checkpoints(Generic[R]):
    """A folder of checkpoints of one run; `fingerprint` says which run (its data and parameters)."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        keep: int = 2,
        record: type[R] = EpochRecord,  # type: ignore[assignment]  # mypy knows no default of a type variable
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep
        self.record = record

    def save(self, state: TrainState[R]) -> Path:
        """Write one checkpoint; it appears under its name only when whole.

        Raises:
            StepError: the disk is full or not writable; older checkpoints are untouched.
        """
        name = f"epoch-{state.next_epoch:05d}"
        partial = self.folder / f".{name}.{os.getpid()}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write(partial, state)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            partial.rename(self.folder / name)
        except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in RuntimeError
            shutil.rmtree(partial, ignore_errors=True)
            raise StepError(
                f"checkpoint {self.folder / name} cannot be written: {error}; free some space and run "
                "the same command again, it goes on from the newest whole checkpoint"
            ) from error
        self._prune()
        return self.folder / name

    def newest(self) -> TrainState[R] | None:
        """Read the newest whole checkpoint of this run; damaged and foreign ones are passed over."""
        for path in sorted(self.folder.glob("epoch-*"), reverse=True):
            if self._is_whole(path):
                return _unpack(torch.load(path / STATE, map_location="cpu", weights_only=True), self.record)
        return None

    def restore(
        self, state: TrainState[R], network: torch.nn.Module, teacher: torch.nn.Module | None = None
    ) -> None:
        """Put a state's parameters into a network, and those of its teacher into the teacher.

        Raises:
            BundleError: the checkpoint is of another architecture, as another version of the code may leave,
                or one of checkpoint and run has a teacher and the other has none.
        """
        if (state.teacher is None) != (teacher is None):
            held, asked = ("no", "one") if state.teacher is None else ("a", "none")
            raise BundleError(
                f"the newest checkpoint in {self.folder} holds {held} teacher and the run asks for {asked} "
                "(params.yaml: train.semi_supervision); remove that folder and run the same command again"
            )
        try:
            network.load_state_dict(state.network)
            if teacher is not None and state.teacher is not None:
                teacher.load_state_dict(state.teacher)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:300]
            raise BundleError(
                f"the newest checkpoint in {self.folder} is of another architecture: {first}; remove that "
                "folder and run the same command again"
            ) from None

    def clear_foreign(self) -> None:
        """Remove what killed processes and runs on other data or parameters left behind."""
        for path in self.folder.glob(".epoch-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("epoch-*"):
            if not self._is_whole(path):
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, folder: Path, state: TrainState[R]) -> None:
        with (folder / STATE).open("wb") as file:
            torch.save(_pack(state), file)
            file.flush()
            os.fsync(file.fileno())
        seal = {"fingerprint": self.fingerprint, "sha256": _sha256(folder / STATE)}
        with (folder / SEAL).open("w") as text:
            json.dump(seal, text)
            text.flush()
            os.fsync(text.fileno())

    def _is_whole(self, path: Path) -> bool:
        try:
            seal = json.loads((path / SEAL).read_text())
            same_run = seal["fingerprint"] == self.fingerprint
            return bool(same_run and seal["sha256"] == _sha256(path / STATE))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _prune(self) -> None:
        for path in sorted(self.folder.glob("epoch-*"))[: -self.keep]:
            shutil.rmtree(path, ignore_errors=True)


def _pack(state: TrainState[R]) -> dict[str, Any]:
    return {
        "network": state.network,
        "optimizer": state.optimizer,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "history": [record.model_dump() for record in state.history],
        "finished": state.finished,
        "teacher": state.teacher,
    }


def _unpack(packed: dict[str, Any], kind: type[R]) -> TrainState[R]:
    history = tuple(kind(**record) for record in packed.pop("history"))
    return TrainState(history=history, **packed)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
