"""fusilli: its fusions of two or three tables: patient and lesion; report and images where they are given."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fusilli.data import prepare_fusion_data
from fusilli.fusionmodels.tabularfusion.channelwise_att import TabularChannelWiseMultiAttention
from fusilli.fusionmodels.tabularfusion.concat_feature_maps import ConcatTabularFeatureMaps
from fusilli.fusionmodels.tabularfusion.crossmodal_att import TabularCrossmodalMultiheadAttention
from fusilli.fusionmodels.tabularfusion.decision import TabularDecision
from fusilli.train import train_and_save_models
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.rivals.given import Numbers, Part, Settings, answer, search

FUSIONS = (
    ConcatTabularFeatureMaps,
    TabularDecision,
    TabularChannelWiseMultiAttention,
    TabularCrossmodalMultiheadAttention,
)
BATCH_SIZE = 32
MODALITIES = ((("table", "facts"), ("text",), ("image",)), (("table",), ("facts",)))
"""Blocks of each of fusilli's tables: where report and images are given, and where they are not."""


def candidates(_: np.random.Generator) -> Iterator[Settings]:
    """Yield each fusion with little patience, for the library keeps the last epoch; then with its own."""
    for patience in (2, 15):
        yield from ({"fusion": fusion, "patience": patience} for fusion in FUSIONS)


def fit(settings: Settings, part: Part) -> tuple[Numbers, Numbers]:
    """Train with the library's own early stopping."""
    torch.manual_seed(part.seed)
    known = pd.concat([part.train, part.validation], ignore_index=True)
    outcome = np.concatenate([part.outcome, part.validation_outcome]).astype(int)
    names = _columns(known)
    scales = [_fitted(part.train[columns]) for columns in names]
    with tempfile.TemporaryDirectory() as folder:
        paths = _written(
            Path(folder), [s.transform(known[n]) for s, n in zip(scales, names, strict=True)], outcome
        )
        module = prepare_fusion_data(
            prediction_task="binary",
            fusion_model=settings["fusion"],
            data_paths=paths,
            output_paths=dict.fromkeys(("checkpoints", "figures", "losses"), folder),
            batch_size=BATCH_SIZE,
            own_early_stopping_callback=EarlyStopping("val_loss", patience=settings["patience"]),
            test_indices=list(range(len(part.train), len(known))),
        )
        (trained,) = train_and_save_models(
            module, settings["fusion"], enable_checkpointing=False, max_epochs=200
        )
    trained.eval()
    return tuple(
        _probability(trained, [s.transform(frame[n]) for s, n in zip(scales, names, strict=True)])
        for frame in (part.validation, part.test)
    )


def _columns(frame: pd.DataFrame) -> list[list[str]]:
    blocks = {name.split("_")[0] for name in frame}
    modalities = MODALITIES["text" not in blocks]
    return [[name for name in frame if name.split("_")[0] in modality] for modality in modalities]


def _fitted(frame: pd.DataFrame) -> object:
    scale = make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
    return scale.fit(frame)


def _written(folder: Path, tables: list[Numbers], outcome: Numbers) -> dict[str, str]:
    """Write what the library reads; an entry it has no table for is empty."""
    paths = {"tabular1": "", "tabular2": "", "tabular3": "", "image": ""}
    for number, values in enumerate(tables, start=1):
        path = folder / f"tabular{number}.csv"
        frame = pd.DataFrame(values, columns=[f"x{k}" for k in range(values.shape[1])])
        frame.assign(ID=range(len(frame)), prediction_label=outcome).to_csv(path, index=False)
        paths[f"tabular{number}"] = str(path)
    return paths


def _probability(trained: torch.nn.Module, tables: list[Numbers]) -> Numbers:
    with torch.inference_mode():
        logits, _ = trained.get_model_outputs(tuple(torch.tensor(t, dtype=torch.float32) for t in tables))
    return torch.sigmoid(logits).numpy().astype(np.float64)


if __name__ == "__main__":
    answer(lambda given: search(given, candidates, fit))
