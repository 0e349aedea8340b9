"""A case: one patient's three modalities, as read from the feature table or from a request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from willis.cohort.schema import CLINICAL_COLUMNS, MODALITIES, ClinicalRow
from willis.errors import ShapeError, StepError
from willis.imaging.lesion import Facts
from willis.imaging.shards import NUM_PLANES, PLANE_SIZE, StudyArrays
from willis.models.network import Batch, NetworkConfig
from willis.models.table import encode_rows
from willis.models.text import Embedded

if TYPE_CHECKING:
    import pandas as pd

FACT_PREFIX = "f_"


@dataclass(frozen=True)
class Case:
    """One patient's three modalities, ready for the model; None where there is none.

    Attributes:
        case_id: what the caller calls it.
        volume: uint8 codes (C, X, Y, Z) of the model's sequences on the canonical grid (RAS+).
        sequence_present: bool (C,), False where the sequence was not acquired.
        planes: uint8 (P, 96, 96) of ready-made planes.
        facts: what was measured from the volumes; part of the image, and gone when it is.
        table: the clinical table at admission.
        text: the report.
    """

    case_id: str
    volume: npt.NDArray[np.uint8] | None
    sequence_present: npt.NDArray[np.bool_]
    planes: npt.NDArray[np.uint8] | None
    facts: Facts | None
    table: ClinicalRow | None
    text: str | None

    def present(self) -> tuple[bool, bool, bool]:
        """Which of image, text, table this case has."""
        has_volume = self.volume is not None and bool(np.any(self.sequence_present))
        has_table = self.table is not None and not self.table.is_empty()
        return has_volume or self.planes is not None, bool(self.text and self.text.strip()), has_table


def stack(cases: Sequence[Case], config: NetworkConfig, text: Embedded) -> Batch:
    """Stack cases into the network's tensors; modalities that the network does not use are marked absent.

    Args:
        cases: B cases.
        config: of the network.
        text: B embedded reports, anything where a case has none.

    Raises:
        ShapeError: a volume or planes do not fit the network; names the case.
    """
    for case in cases:
        _check(case, config)
    used = torch.tensor([name in config.use_modalities for name in MODALITIES])
    facts = [_facts_row(case.facts) for case in cases]
    table = [{} if case.table is None else case.table.model_dump() for case in cases]
    sentence, text_tokens, text_real = text.tensors()
    return Batch(
        volume=torch.from_numpy(_volumes(cases, config)),
        sequence_present=torch.from_numpy(np.stack([_sequences(case, config) for case in cases])),
        planes=torch.from_numpy(_planes(cases)) if config.planes else None,
        planes_present=torch.tensor([case.planes is not None for case in cases]),
        facts=torch.from_numpy(encode_rows(config.fact_columns, facts)),
        table=torch.from_numpy(encode_rows(config.table_columns, table)),
        text=sentence,
        text_tokens=text_tokens,
        text_real=text_real,
        modality_present=torch.tensor([case.present() for case in cases]) & used,
        outcome=torch.full((len(cases),), torch.nan),
        grade=torch.full((len(cases),), torch.nan),
        weight=torch.ones(len(cases)),
    )


def cases_from(ingest_dir: Path, features_dir: Path, split: str | None = None) -> Iterator[Case]:
    """Read the cases of one split (of all, when None), in the order of the training table.

    Args:
        ingest_dir: output of `ingest`.
        features_dir: output of `featurize`.
        split: a name of schema.SPLITS.

    Raises:
        StepError: the two were not made from each other.
    """
    arrays, table = StudyArrays.open(ingest_dir), read_training_table(ingest_dir, features_dir)
    for index, row in enumerate(table.to_dict("records")):
        if split is None or row["split"] == split:
            yield case_of_row({str(name): value for name, value in row.items()}, arrays, index)


def read_training_table(ingest_dir: Path, features_dir: Path) -> "pd.DataFrame":
    """Read training_table.parquet and prove that its rows are the studies of `ingest`, in order.

    Raises:
        StepError: it is missing or was made from another ingest.
    """
    import pandas as pd

    path = features_dir / "training_table.parquet"
    if not path.is_file():
        raise StepError(f"{path} is missing; run `willis featurize` to make {features_dir}")
    table = pd.read_parquet(path)
    names = list(StudyArrays.open(ingest_dir).patient_ids)
    if list(table["patient_id"].astype(str)) != names:
        raise StepError(
            f"{path} has {len(table)} rows whose patients are not the {len(names)} studies of {ingest_dir} "
            "in order; run `willis featurize` again"
        )
    return table


def case_of_row(row: dict[str, Any], arrays: StudyArrays, index: int) -> Case:
    """Make a case of one row of the training table and the arrays of the same study."""
    facts = {name.removeprefix(FACT_PREFIX): v for name, v in row.items() if name.startswith(FACT_PREFIX)}
    return Case(
        case_id=str(row["patient_id"]),
        volume=arrays.volume(index),
        sequence_present=arrays.sequence_present[index],
        planes=arrays.planes_of(index) if arrays.planes_present[index] else None,
        facts=Facts.from_row(facts),
        table=clinical_row(row) if row.get("has_table", True) else None,
        text=_known(row.get("text")) if row.get("has_text", True) else None,
    )


def clinical_row(row: dict[str, Any]) -> ClinicalRow:
    """Read the clinical columns of a row; NaN is not known."""
    return ClinicalRow(**{column.name: _known(row.get(column.name)) for column in CLINICAL_COLUMNS})


def _known(value: Any) -> Any:
    return None if value is None or value != value else value


def _facts_row(facts: Facts | None) -> dict[str, Any]:
    row = {} if facts is None else facts.to_row()
    return row | {FACT_PREFIX + name: value for name, value in row.items()}


def _planes(cases: Sequence[Case]) -> npt.NDArray[np.uint8]:
    nothing = np.zeros((NUM_PLANES, PLANE_SIZE, PLANE_SIZE), np.uint8)
    return np.stack([nothing if case.planes is None else case.planes for case in cases])


def _check_codes(codes: npt.NDArray[np.uint8], shape: tuple[int, ...], place: str) -> None:
    if codes.shape != shape or codes.dtype != np.uint8:
        raise ShapeError(
            f"{place}: {codes.dtype} {codes.shape}; this model reads uint8 {shape} (contract.json: shape); "
            "prepare the study with the ingest section that the model was trained with"
        )


def _volumes(cases: Sequence[Case], config: NetworkConfig) -> npt.NDArray[np.uint8]:
    shape = (len(config.sequences), *config.shape)
    return np.stack([np.zeros(shape, np.uint8) if case.volume is None else case.volume for case in cases])


def _sequences(case: Case, config: NetworkConfig) -> npt.NDArray[np.bool_]:
    if case.volume is None:
        return np.zeros(len(config.sequences), bool)
    return np.asarray(case.sequence_present, bool)


def _check(case: Case, config: NetworkConfig) -> None:
    place, sequences = f"case {case.case_id!r}", config.sequences
    if case.planes is not None and config.planes:
        _check_codes(case.planes, (NUM_PLANES, PLANE_SIZE, PLANE_SIZE), f"{place}: planes")
    if case.volume is None:
        return
    _check_codes(case.volume, (len(sequences), *config.shape), f"{place}: volume {sequences}")
    if np.shape(case.sequence_present) != (len(sequences),):
        raise ShapeError(
            f"{place}: sequence_present has shape {np.shape(case.sequence_present)}; "
            f"it must hold one bool for each of {sequences} (contract.json: sequences)"
        )
