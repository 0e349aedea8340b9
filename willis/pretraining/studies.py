"""Who may be learned from: the splits that `ingest` wrote, in the order of the volumes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from willis.errors import ShapeError
from willis.imaging.shards import StudyArrays


def read_splits(ingest: Path, arrays: StudyArrays) -> npt.NDArray[np.str_]:
    """Read the split of every study; nothing else of the clinical side is opened.

    Raises:
        ShapeError: a patient of the volumes stands in no split.
    """
    import pandas as pd

    frame = pd.read_parquet(ingest / "splits.parquet")
    of_patient = dict(zip(frame["patient_id"].astype(str), frame["split"].astype(str), strict=True))
    absent = sum(patient not in of_patient for patient in arrays.patient_ids)
    if absent:
        raise ShapeError(
            f"{absent} of {len(arrays)} studies of {ingest} stand in no split (splits.parquet); run "
            "`willis ingest` again"
        )
    return np.array([of_patient[patient] for patient in arrays.patient_ids], dtype=str)
