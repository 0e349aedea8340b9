"""What a rival may see of one fold: training patients with their outcome, tested patients without.

Columns are named by the block that they belong to:

    table_*  the clinical table     facts_*  what was measured from the volumes
    text_*   the report, embedded by the frozen packaged encoder
    image_*  principal components of the lesion volume and of the FLAIR planes
    report_text  the report as it was written, for a rival with a text encoder of its own

Table and facts become numbers as for the baselines (`willis.evaluation.baselines.Design`: volumes as square
roots, one column per category, NaN where unknown). Whatever is fitted is fitted on the training patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from willis.evaluation.baselines import Design, fact_columns, table_columns
from willis.evaluation.metrics import Numbers
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import Fold, Plan
from willis.imaging.shards import StudyArrays, decode
from willis.models.text import TEXT_WIDTH, TextEncoder, embed

BLOCKS = ("table", "facts", "text", "image", "report")
PATIENT, OUTCOME = "patient_id", "poor_outcome"
NUM_COMPONENTS = 32
"""Of the volumes, and as many of the planes."""
COARSER = 2
"""Voxels per edge that are averaged before components are looked for."""


@dataclass(frozen=True)
class Handout:
    """One fold as a rival gets it.

    Attributes:
        train: `patient_id`, `poor_outcome` and the columns of the blocks.
        test: `patient_id` and the columns of the blocks.
    """

    train: pd.DataFrame
    test: pd.DataFrame

    def only(self, blocks: Sequence[str]) -> "Handout":
        """Return the same patients with these blocks alone."""
        return Handout(*(_columns_of(frame, blocks) for frame in (self.train, self.test)))

    def write(self, folder: Path) -> None:
        """Write train.parquet and test.parquet."""
        self.train.to_parquet(folder / "train.parquet", index=False)
        self.test.to_parquet(folder / "test.parquet", index=False)


@dataclass(frozen=True)
class Material:
    """Every patient of a plan, before anything is fitted; rows are in the same order everywhere.

    Attributes:
        frame: (n) rows of the training table.
        text: (n, T) embedded reports, 0 where a patient has none.
        images: (n, voxels) each, NaN where a patient has none.
    """

    frame: pd.DataFrame
    text: Numbers
    images: tuple[Numbers, ...]

    @classmethod
    def of(cls, cohort: Cohort, plan: Plan, encoder: TextEncoder) -> "Material":
        """Read the patients whom a plan tests or trains on."""
        wanted = {patient for fold in plan.folds for patient in (*fold.test, *fold.train)}
        frame = cohort.frame[cohort.frame["patient_id"].astype(str).isin(wanted)].reset_index(drop=True)
        has_text = frame["has_text"].to_numpy(bool)
        texts = [str(text) if there else None for text, there in zip(frame["text"], has_text, strict=True)]
        text = embed(encoder, texts, TEXT_WIDTH, tokens=False).sentence.astype(np.float64)
        return cls(frame, text, _images(cohort.arrays, frame["index_in_shards"].tolist()))

    def handout(self, fold: Fold) -> Handout:
        """Cut one fold, fitting scales, categories and components on its training patients."""
        patients = self.frame[PATIENT].astype(str)
        train, test = patients.isin(fold.train).to_numpy(), patients.isin(fold.test).to_numpy()
        blocks = [
            _named("table", self.frame, train, table_columns(self.frame)),
            _named("facts", self.frame, train, fact_columns(self.frame)),
            _numbered("text", self.text),
            _numbered("image", np.hstack([components(image, train) for image in self.images])),
            self.frame["text"].where(self.frame["has_text"].astype(bool)).rename("report_text"),
        ]
        seen = pd.concat([patients.rename(PATIENT), *blocks], axis=1)
        known = seen[train].assign(**{OUTCOME: self.frame.loc[train, OUTCOME].astype(int)})
        return Handout(known.reset_index(drop=True), seen[test].reset_index(drop=True))


def components(images: Numbers, train: Numbers) -> Numbers:
    """Project each patient's voxels on the principal components of the training patients.

    Args:
        images: (n, voxels), rows of NaN where a patient has no such image.
        train: (n,) bool.

    Returns:
        (n, at most NUM_COMPONENTS), NaN where a patient has no such image.
    """
    there = ~np.isnan(images).any(axis=1)
    fitted = images[train & there]
    number = min(NUM_COMPONENTS, len(fitted) - 1, images.shape[1])
    found = np.full((len(images), max(number, 0)), np.nan)
    if number > 0:
        analysis = PCA(number, svd_solver="randomized", random_state=0).fit(fitted)
        found[there] = analysis.transform(images[there])
    return found


def _images(arrays: StudyArrays, rows: list[int]) -> tuple[Numbers, ...]:
    """Volumes, coarsened, and planes as they are; one row of voxels per patient."""
    volumes = np.stack([_coarse(decode(arrays.volume(row), arrays.sequences)) for row in rows])
    volumes[~arrays.sequence_present[rows].any(axis=1)] = np.nan
    if not arrays.planes:
        return (volumes,)
    planes = np.stack([arrays.planes_of(row).ravel() for row in rows]).astype(np.float32)
    planes[~arrays.planes_present[rows]] = np.nan
    return volumes, planes


def _coarse(volume: Numbers) -> Numbers:
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(volume), COARSER)
    return pooled.numpy().ravel()


def _named(block: str, frame: pd.DataFrame, train: Numbers, columns: Sequence[str]) -> pd.DataFrame:
    design = Design.fit(frame[train], columns)
    names = [*design.numeric, *(f"{column}_{level}" for column, level in design.categories)]
    return pd.DataFrame(
        design.matrix(frame), columns=[f"{block}_{name.removeprefix('f_')}" for name in names]
    )


def _numbered(block: str, values: Numbers) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"{block}_{k:03d}" for k in range(values.shape[1])])


def _columns_of(frame: pd.DataFrame, blocks: Sequence[str]) -> pd.DataFrame:
    return frame[[name for name in frame if name in (PATIENT, OUTCOME) or name.split("_")[0] in blocks]]
