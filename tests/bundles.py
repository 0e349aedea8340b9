"""Small bundles whose weights mean nothing, for tests of the registry and of the monitor."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from tests.watched_rows import patient_rows
from willis.models.bundle import Bundle, Lineage, SeenPatients, write_bundle
from willis.models.preprocessing import Preprocessing
from willis.params import IngestParams

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def a_bundle(folder: Path, seed: int = 0, reference: pd.DataFrame | None = None) -> Bundle:
    """Write a bundle into folder/bundle-<seed>; another seed gives other weights, so another version."""
    parts = folder / f"parts-{seed}"
    parts.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    save_file({"layer.weight": weights}, parts / "model.safetensors")
    rows = patient_rows(20, seed) if reference is None else reference
    rows.to_parquet(parts / "reference.parquet", index=False)
    seen = SeenPatients(
        key_check="k", train=("t1", "t2"), validation=tuple(rows["patient"]), calibration=(), test=("e1",)
    )
    texts = {
        "contract.json": '{"sequences": ["dwi", "adc"]}',
        "preprocessing.json": Preprocessing.of(
            IngestParams(sequences=("dwi", "adc")), None
        ).model_dump_json(),
        "calibration.json": "{}",
        "evaluation.json": "{}",
        "patients.json": seen.model_dump_json(),
        "model_card.md": "# A model of nothing\n",
    }
    for name, text in texts.items():
        (parts / name).write_text(text)
    sources = {path.name: path for path in parts.iterdir()}
    lineage = Lineage(cohort_md5="abc.dir", git_revision="0" * 40, git_dirty=False)
    return write_bundle(folder / f"bundle-{seed}", sources, lineage, ("dwi", "adc"), NOON, "mrs_90d")
