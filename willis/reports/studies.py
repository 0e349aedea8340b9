"""The studies that `ingest` left, as a reader gets them: volumes, planes and facts, without an id."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from willis.errors import StepError
from willis.imaging.lesion import Facts
from willis.imaging.shards import StudyArrays
from willis.reports.writer import Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class IngestedStudies:
    """Every kept study of a cohort, in the order of studies.parquet.

    Attributes:
        arrays: volumes and planes, memory-mapped.
        table: studies.parquet; the only place that knows whose a study is.
        facts: one per study.
        spacing_mm: voxel edges of every volume.
    """

    arrays: StudyArrays
    table: "pd.DataFrame"
    facts: tuple[Facts, ...]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def open(cls, ingest: Path) -> Self:
        """Open what `ingest` wrote; no voxel is read.

        Raises:
            StepError: the folder is not a finished output of `ingest`.
        """
        import pandas as pd

        arrays = StudyArrays.open(ingest)
        try:
            table = pd.read_parquet(ingest / "studies.parquet")
            facts = pd.read_parquet(ingest / "facts.parquet").set_index("study_id")
        except FileNotFoundError as error:
            raise StepError(f"{error.filename} is missing; run `willis ingest` to make {ingest}") from None
        missing = sorted(set(table["study_id"]) - set(facts.index))
        if missing or facts.index.has_duplicates:
            raise StepError(
                f"{ingest / 'facts.parquet'} has {len(facts)} rows for {len(table)} studies and lacks "
                f"{missing[:5]}; it must have one per study; run `willis ingest` again"
            )
        rows = facts.loc[table["study_id"]].to_dict("records")
        x, y, z = json.loads((ingest / "ingest.json").read_text())["spacing_mm"]
        known = tuple(Facts.from_row({str(k): v for k, v in row.items()}) for row in rows)
        return cls(arrays, table, known, (x, y, z))

    def __len__(self) -> int:
        return len(self.table)

    def study(self, index: int) -> Study:
        """Return study `index` as a view on the files."""
        return Study(
            volume=self.arrays.volume(index),
            sequences=self.arrays.sequences,
            sequence_present=tuple(bool(present) for present in self.arrays.sequence_present[index]),
            planes=self.arrays.planes_of(index) if self.arrays.planes_present[index] else None,
            spacing_mm=self.spacing_mm,
            facts=self.facts[index],
        )
