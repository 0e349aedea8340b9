"""A small output of `ingest`, written by its format alone: for tests of the steps that read it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from willis.cohort.schema import CATEGORIES, CLINICAL_COLUMNS, FLAGS, SPLITS
from willis.imaging.lesion import Facts, Load
from willis.imaging.shards import ShardWriter

REGIONS = ("mca_frontal_left", "mca_insula_left", "mca_insula_right", "thalamus_right", "pca_occipital_right")
SHAPE = (4, 5, 3)
START = pd.Timestamp("2025-03-01T08:00:00", tz="UTC")


def facts_of(number: int) -> Facts:
    """Facts that differ between studies; every seventh has no infarct, every eleventh is unreadable."""
    if number % 11 == 10:
        return Facts(loads=tuple(Load(region=region, volume_ml=None) for region in REGIONS))
    if number % 7 == 6:
        loads = tuple(Load(region=region, volume_ml=0.0) for region in REGIONS)
        return Facts(
            infarct_present=False,
            volume_ml=0.0,
            num_lesions=0,
            laterality="none",
            territory="none",
            loads=loads,
        )
    volume_ml = 0.7 + 3.3 * number
    left = number % 2 == 0
    shares = (0.8, 0.2, 0, 0, 0) if left else (0, 0, 0, 0.3, 0.7)
    return Facts(
        infarct_present=True, volume_ml=volume_ml, num_lesions=1 + number % 3,
        laterality="left" if left else "right", territory="mca" if left else "pca",
        adc_lesion_mm2_s=520e-6, dwi_ratio=1.6, flair_ratio=1.05 + 0.02 * (number % 9),
        dwi_flair_mismatch=number % 3 == 0, midline_shift_mm=0.4,
        loads=tuple(
            Load(region=region, volume_ml=share * volume_ml)
            for region, share in zip(REGIONS, shares, strict=True)
        ),
    )  # fmt: skip


def write_small_ingest(folder: Path, num_patients: int = 12, seed: int = 3) -> Path:
    """Write studies, facts, table, splits and shards of `num_patients` patients, one study each."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder / "shards", "volumes", (3, *SHAPE), 8) as writer:
        places = [
            writer.add(random.integers(0, 255, (3, *SHAPE)).astype(np.uint8)) for _ in range(num_patients)
        ]
    ids = [f"sub-{number:04d}" for number in range(num_patients)]
    scanned = [START + pd.Timedelta(hours=5 * number) for number in range(num_patients)]
    studies = pd.DataFrame({"patient_id": ids, "study_id": [f"{name}_ses-1" for name in ids]})
    studies = studies.assign(scan_time=pd.Series(scanned).dt.as_unit("us"), site="a", scanner="north")
    studies = studies.assign(has_dwi=True, has_adc=True, has_flair=True, has_planes=False)
    studies["shard"], studies["row"] = zip(*places, strict=True)
    facts = [
        {"patient_id": p, "study_id": s, "event_time": t} | facts_of(number).to_row()
        for number, (p, s, t) in enumerate(zip(ids, studies["study_id"], studies["scan_time"], strict=True))
    ]
    frames = {
        "studies": studies,
        "facts": pd.DataFrame(facts),
        "table": _table(ids, scanned, random),
        "splits": pd.DataFrame({"patient_id": ids, "split": [SPLITS[n % 4] for n in range(num_patients)]}),
    }
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    summary = {
        "sequences": ["dwi", "adc", "flair"], "planes": [], "shape": SHAPE, "spacing_mm": [2.0, 2.0, 4.0],
    }  # fmt: skip
    (folder / "ingest.json").write_text(json.dumps(summary))
    return folder


def _table(ids: list[str], scanned: list[pd.Timestamp], random: np.random.Generator) -> pd.DataFrame:
    n = len(ids)
    table = pd.DataFrame({"patient_id": ids})
    for column in CLINICAL_COLUMNS:
        if column.name in CATEGORIES:
            table[column.name] = [("F", "M", None)[k] for k in random.integers(0, 3, n)]
            continue
        values = random.uniform(column.low, column.high, n)
        values = np.rint(values) if column.name in FLAGS else values.round(1)
        table[column.name] = np.where(random.random(n) < 0.1, np.nan, values)
    table["has_table"] = True
    clinical = [column.name for column in CLINICAL_COLUMNS]
    table.loc[table.index % 9 == 8, clinical] = None
    table.loc[table.index % 9 == 8, "has_table"] = False
    mrs = random.integers(0, 7, n).astype(float)
    return table.assign(
        site="a", scanner="north", mrs=mrs, poor_outcome=(mrs >= 3).astype(float),
        admission_time=(pd.Series(scanned) - pd.Timedelta(hours=3)).dt.as_unit("us"),
    )  # fmt: skip
