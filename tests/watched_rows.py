"""Rows that look like a reference or a window of the prediction log, for tests of the monitor."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from willis.cohort.schema import CATEGORIES, CLINICAL_COLUMNS, FLAGS, MODALITIES, NUMBERS
from willis.monitoring.reference import sample_reference
from willis.stores.predictions import PredictionRow

WIDTH = 16
REGIONS = ("mca", "pca", "aca", "lacune", "vertebrobasilar")


def patient_rows(num_rows: int, seed: int, *, new_scanner: bool = False) -> pd.DataFrame:
    """Draw patients: a table, facts, report fields that repeat facts, a prediction and an embedding.

    A new scanner measures another ADC, another contrast, less of the lesion, and moves the embedding.
    """
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=num_rows)
    columns: dict[str, object] = {"patient": [f"{seed:04d}-{row:05d}" for row in range(num_rows)]}
    columns |= {name: severity * 0.3 + rng.normal(size=num_rows) for name in NUMBERS}
    columns |= {name: (rng.random(num_rows) < 0.2).astype(float) for name in FLAGS}
    columns |= {name: rng.choice(["F", "M"], num_rows) for name in CATEGORIES}
    volume = np.exp(1.8 + 0.8 * severity + 0.8 * rng.normal(size=num_rows)) * (0.5 if new_scanner else 1)
    side = rng.choice(["left", "right"], num_rows)
    columns |= {
        "f_infarct_present": np.ones(num_rows, bool),
        "f_volume_ml": volume,
        "f_num_lesions": rng.choice([1, 1, 1, 2, 3], num_rows),
        "f_laterality": side,
        "f_adc_lesion_mm2_s": (4.9e-4 if new_scanner else 4.4e-4) + 3e-5 * rng.normal(size=num_rows),
        "f_dwi_ratio": (1.6 if new_scanner else 2.1) + 0.25 * rng.normal(size=num_rows),
        "f_flair_ratio": (1.5 if new_scanner else 1.3) + 0.15 * rng.normal(size=num_rows),
        "f_midline_shift_mm": np.full(num_rows, np.nan),
        "r_laterality": side,
        "r_volume_band": np.where(volume < 1, "under_1_ml", np.where(volume < 10, "1_to_10_ml", "over")),
        "r_low_adc": np.full(num_rows, "yes"),
        "r_fazekas": rng.integers(0, 4, num_rows).astype(float),
        "grounding_score": np.ones(num_rows),
        "has_image": np.ones(num_rows, bool),
        "has_text": np.ones(num_rows, bool),
        "has_table": rng.random(num_rows) < 0.95,
    }
    owner = rng.integers(len(REGIONS), size=num_rows)
    columns |= {f"f_load_{r}": np.where(owner == k, volume, 0.0) for k, r in enumerate(REGIONS)}
    rows = pd.DataFrame(columns)
    for name in (*NUMBERS, *FLAGS):
        rows.loc[rng.random(num_rows) < 0.08, name] = np.nan
    p = 1 / (1 + np.exp(-(severity - 0.6)))
    embedding = rng.normal(size=(num_rows, WIDTH)) + severity[:, None] * 0.5 + (0.6 if new_scanner else 0)
    return sample_reference(rows, list(rows["patient"]), p, embedding, num_rows)


def log_rows(rows: pd.DataFrame, bundle_version: str, start: datetime) -> list[PredictionRow]:
    """The same patients as rows of the prediction log, one a minute from `start` on."""
    return [
        _log_row(row, f"{bundle_version}-{start:%d%H}-{k}", bundle_version, start + timedelta(minutes=k))
        for k, row in enumerate(rows.to_dict("records"))
    ]


def _log_row(row: dict[str, Any], name: str, bundle_version: str, at: datetime) -> PredictionRow:
    def part(prefix: str) -> dict[str, Any]:
        return {str(k).removeprefix(prefix): _plain(v) for k, v in row.items() if str(k).startswith(prefix)}

    embedding = [value for key, value in row.items() if str(key).startswith("embedding_")]
    return PredictionRow(
        prediction_id=name,
        created_at=at,
        request_id=name,
        bundle_version=bundle_version,
        modalities_used=tuple(name for name in MODALITIES if row[f"has_{name}"]),
        probability=row["p"],
        probability_raw=row["p"],
        prediction_set=("good",),
        attribution={},
        embedding=np.array(embedding, dtype=np.float32),
        answer="{}",
        patient=row["patient"],
        table={column.name: _plain(row[column.name]) for column in CLINICAL_COLUMNS},
        facts=part("f_"),
        report=part("r_"),
        grounding_score=_plain(row["grounding_score"]),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if value != value else value
