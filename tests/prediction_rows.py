"""Rows for tests of the prediction log."""

from datetime import UTC, datetime

import numpy as np

from willis.stores.predictions import PredictionRow

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def prediction_row(prediction_id: str = "p-1", **changes: object) -> PredictionRow:
    """A complete row; `changes` replace single fields."""
    values: dict[str, object] = {
        "prediction_id": prediction_id,
        "created_at": NOON,
        "request_id": "r-1",
        "bundle_version": "0123456789abcdef",
        "modalities_used": ("image", "table"),
        "probability": 0.41,
        "probability_raw": 0.47,
        "prediction_set": ("good", "poor"),
        "attribution": {"image": 0.05, "table": 0.02, "text": 0.0},
        "embedding": np.arange(6, dtype=np.float32) / 7,
        "answer": '{"probability": 0.41}',
        "patient": "a" * 32,
        "site": "north",
        "scanner": "north-3t",
        "table": {"age": 71.0, "sex": "F", "nihss": None},
        "facts": {"volume_ml": 6.5, "laterality": "left"},
        "report": {"laterality": "left"},
        "report_text": "Acute infarct, left.",
        "report_writer": "facts",
        "report_model": "measured-facts",
        "report_prompt_hash": "b" * 64,
        "grounding_score": 0.9,
        "feature_times": {"clinical": "2026-05-01T08:00:00+00:00"},
        "latency_ms": 81.5,
    }
    return PredictionRow(**(values | changes))  # type: ignore[arg-type]
