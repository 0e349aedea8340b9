"""Rows that look like a reference or a window of the prediction log, for tests of the monitor."""

import numpy as np
import pandas as pd

from willis.cohort.schema import CATEGORIES, FLAGS, NUMBERS
from willis.monitoring.reference import sample_reference

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
