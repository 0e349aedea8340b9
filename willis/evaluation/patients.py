"""The patients of one split, ready to be evaluated: a table row, a case and an outcome each."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from willis.cohort.schema import MODALITIES, SPLITS
from willis.errors import StepError
from willis.evaluation.metrics import Numbers
from willis.evaluation.results import ModalityCount, SplitCount
from willis.imaging.shards import StudyArrays
from willis.inference import Case, case_of_row, read_training_table
from willis.models.bundle import Outcome

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ingested:
    """What ingest.json says that an evaluation repeats."""

    outcome: Outcome
    spacing_mm: tuple[float, float, float]

    @classmethod
    def read(cls, ingest: Path) -> "Ingested":
        """Read ingest.json.

        Raises:
            StepError: it is missing.
        """
        path = ingest / "ingest.json"
        if not path.is_file():
            raise StepError(f"{path} is missing; run `willis ingest` to make {ingest}")
        found: dict[str, Any] = json.loads(path.read_text())
        x, y, z = found.get("spacing_mm", (1.0, 1.0, 1.0))
        outcome: Outcome = "mrs_90d" if found.get("outcome") == "mrs_90d" else "mrs"
        return cls(outcome, (float(x), float(y), float(z)))


@dataclass(frozen=True)
class Patients:
    """Patients of one split, one study each; rows of `frame` and `cases` are in the same order."""

    frame: "pd.DataFrame"
    cases: tuple[Case, ...]

    def with_outcome(self) -> list[int]:
        """Rows of those who have an outcome."""
        return [int(row) for row in np.flatnonzero(self.frame["poor_outcome"].notna())]

    def take(self, rows: Sequence[int]) -> "Patients":
        """Some of the patients, in the order of `rows`."""
        at = list(rows)
        return Patients(self.frame.iloc[at].reset_index(drop=True), tuple(self.cases[k] for k in at))

    @property
    def outcome(self) -> Numbers:
        """(n,) 1 poor, 0 good, NaN unknown."""
        return np.asarray(self.frame["poor_outcome"], np.float64)

    @property
    def patient_ids(self) -> list[str]:
        """Their ids, in order."""
        return self.frame["patient_id"].astype(str).tolist()

    def modality_counts(self) -> tuple[ModalityCount, ...]:
        """How many have each modality."""
        there = np.array([case.present() for case in self.cases]).reshape(-1, len(MODALITIES))
        return tuple(
            ModalityCount(modality=name, num_patients=int(there[:, k].sum()))
            for k, name in enumerate(MODALITIES)
        )


@dataclass(frozen=True)
class Cohort:
    """All patients of a training table, their latest study each, and the arrays behind them."""

    frame: "pd.DataFrame"
    arrays: StudyArrays

    @classmethod
    def read(cls, ingest: Path, features: Path) -> "Cohort":
        """Read the training table; a patient with several studies is judged by the last.

        Raises:
            StepError: the two folders were not made from each other.
        """
        frame = read_training_table(ingest, features)
        frame = frame.assign(index_in_shards=np.arange(len(frame)))
        latest = frame.drop_duplicates("patient_id", keep="last").reset_index(drop=True)
        return cls(latest, StudyArrays.open(ingest))

    def rows(self, split: str) -> "pd.DataFrame":
        """Table rows of one split."""
        return self.frame[self.frame["split"] == split].reset_index(drop=True)

    def split(self, split: str) -> Patients:
        """Patients of one split; their volumes stay on disk until they are looked at."""
        return self.patients(self.rows(split))

    def patients(self, rows: "pd.DataFrame") -> Patients:
        """Patients of these rows of `frame`."""
        return Patients(rows, tuple(self._cases(rows)))

    def counts(self) -> tuple[SplitCount, ...]:
        """Patients and outcomes per split."""
        counts = []
        for split in SPLITS:
            outcome = self.frame.loc[self.frame["split"] == split, "poor_outcome"]
            counts.append(
                SplitCount(
                    split=split,
                    num_patients=len(outcome),
                    num_with_outcome=int(outcome.notna().sum()),
                    num_poor=int((outcome == 1).sum()),
                )
            )
        return tuple(counts)

    def _cases(self, rows: "pd.DataFrame") -> Iterable[Case]:
        for row in rows.to_dict("records"):
            yield case_of_row(
                {str(name): value for name, value in row.items()}, self.arrays, row["index_in_shards"]
            )
