"""Feast's picture of Willis: one entity, three views with their own event times, one feature service.

Two roads lead here. `feast -c feature_repo apply` imports this file and takes the objects at its end, which
point at the default folder. The library loads the file and calls `definitions` with the folder and the ttl of
its settings and parameters. Both get their columns from the tables below, and nothing else names them.
"""

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, PrimitiveFeastType, String

from willis.cohort.schema import CATEGORIES, CLINICAL_COLUMNS

SERVICE = "stroke_outcome"
OFFLINE_DIR = Path(__file__).resolve().parents[1] / "build" / "feast" / "offline"
TTL = timedelta(days=30)

CLINICAL: dict[str, PrimitiveFeastType] = {
    column.name: String if column.name in CATEGORIES else Float64 for column in CLINICAL_COLUMNS
}

# Numbers and flags are Float64, for a missing value must stay missing. The load of every arterial region
# travels as one JSON object, because the regions belong to the atlas of the cohort, not to this file.
IMAGING: dict[str, PrimitiveFeastType] = {
    "study_id": String,
    "infarct_present": Float64,
    "volume_ml": Float64,
    "num_lesions": Float64,
    "laterality": String,
    "territory": String,
    "corticospinal_share": Float64,
    "adc_lesion_mm2_s": Float64,
    "dwi_ratio": Float64,
    "flair_ratio": Float64,
    "dwi_flair_mismatch": Float64,
    "midline_shift_mm": Float64,
    "flair_dark_share": Float64,
    "flair_bright_share": Float64,
    "loads": String,
}

REPORT: dict[str, PrimitiveFeastType] = {
    "study_id": String,
    "text": String,
    "grounding_score": Float64,
    "r_dwi_quality": String,
    "r_adc_quality": String,
    "r_flair_quality": String,
    "r_acute_infarct": String,
    "r_laterality": String,
    "r_territories": String,
    "r_regions": String,
    "r_volume_band": String,
    "r_num_lesions": Float64,
    "r_pattern": String,
    "r_dwi_aspects": Float64,
    "r_low_adc": String,
    "r_dwi_flair_mismatch": String,
    "r_haemorrhage": String,
    "r_midline_shift_mm": Float64,
    "r_hydrocephalus": String,
    "r_fazekas": Float64,
    "r_old_infarcts": String,
    "r_microbleeds": String,
}


class Definitions(NamedTuple):
    """Everything that `apply` registers."""

    patient: Entity
    clinical: FeatureView
    imaging: FeatureView
    report: FeatureView
    service: FeatureService


def definitions(offline_dir: Path, ttl: timedelta) -> Definitions:
    """Build the entity, the views and the service over the parquet files of one folder.

    Args:
        offline_dir: holds clinical.parquet, imaging.parquet and report.parquet.
        ttl: how long after its event time a row may still be used.
    """
    patient = Entity(
        name="patient", join_keys=["patient_id"], value_type=ValueType.STRING, description="one patient"
    )

    def view(name: str, columns: dict[str, PrimitiveFeastType], description: str) -> FeatureView:
        source = FileSource(
            name=f"{name}_rows", path=str(offline_dir / f"{name}.parquet"), timestamp_field="event_timestamp"
        )
        schema = [Field(name=column, dtype=dtype) for column, dtype in columns.items()]
        return FeatureView(
            name=name, entities=[patient], ttl=ttl, schema=schema, source=source, description=description
        )

    clinical = view("clinical", CLINICAL, "the table at admission; event time: admission")
    imaging = view("imaging", IMAGING, "what was measured from the MRI; event time: the scan")
    report = view("report", REPORT, "what was written about the MRI; event time: when it was written")
    service = FeatureService(name=SERVICE, features=[clinical, imaging, report])
    return Definitions(patient, clinical, imaging, report, service)


patient, clinical, imaging, report, service = definitions(OFFLINE_DIR, TTL)
