"""The real ISLES'22 case, with every file it has, from its own layout to a prediction."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tests.fixtures.vllm import ServedReader
from tests.served import FULL, publish, small_bundle, test_settings
from willis.casework import predict_cohort
from willis.cohort.bids_import import import_bids
from willis.params import IngestParams, Params, ReportParams
from willis.reports.schema import volume_band
from willis.steps.ingest import ingest
from willis.steps.report import report

pytestmark = pytest.mark.integration


def expert_volume_ml(isles: Path) -> float:
    """Voxels of the expert's mask times their volume, counted in the file."""
    mask = nib.load(next(isles.glob("derivatives/*/*/*_msk.nii.gz")))
    return float((np.asarray(mask.dataobj) > 0).sum() * np.prod(mask.header.get_zooms()) / 1000)


@pytest.fixture(scope="module")
def case(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the case as a canonical cohort and as `ingest` left it."""
    folder = tmp_path_factory.mktemp("isles")
    import_bids(data_dir / "isles22", folder / "cohort")
    ingest(folder / "cohort", folder / "ingest", IngestParams(require_outcome=False))
    return folder


def test_the_real_isles_case_goes_from_its_own_layout_through_ingest_and_report_to_a_prediction(
    case: Path, data_dir: Path, tmp_path: Path
) -> None:
    settings = test_settings(tmp_path, report_store=tmp_path / "reports.sqlite")
    study = pd.read_parquet(case / "ingest" / "studies.parquet").iloc[0]
    facts = pd.read_parquet(case / "ingest" / "facts.parquet").iloc[0]
    assert study[["has_dwi", "has_adc", "has_flair"]].all() and study["adc_unit"] == "1e-3 mm^2/s"
    assert study["registration_quality"] > 0.9
    assert facts["volume_ml"] == pytest.approx(expert_volume_ml(data_dir / "isles22"), rel=0.001)
    assert (facts["laterality"], facts["territory"]) == ("left", "mca")
    report(case / "ingest", tmp_path / "reports", ReportParams(), settings)
    written = pd.read_parquet(tmp_path / "reports" / "reports.parquet").iloc[0]
    assert "left middle cerebral artery" in written["text"] and written["grounding_score"] == 1.0
    bundle = small_bundle(tmp_path / "bundle", FULL)
    publish(bundle, settings)
    told = predict_cohort(case / "cohort", bundle.version, Params(), settings)
    assert [prediction.case_id for prediction in told] == ["sub-strokecase0009_ses-0001"]
    assert 0 < told[0].probability < 1 and told[0].modalities_used == ("image", "text")


def test_the_packaged_reader_reports_the_real_isles_case_as_it_was_measured(
    case: Path, data_dir: Path, served_reader: ServedReader, tmp_path: Path
) -> None:
    settings = served_reader.settings.model_copy(update={"report_store": tmp_path / "reports.sqlite"})
    report(case / "ingest", tmp_path / "reports", served_reader.params, settings)
    written = pd.read_parquet(tmp_path / "reports" / "reports.parquet").iloc[0]
    assert (written["r_laterality"], written["r_territories"]) == ("left", "mca")
    assert written["r_volume_band"] == volume_band(expert_volume_ml(data_dir / "isles22"))
    assert f"{expert_volume_ml(data_dir / 'isles22'):.1f} ml" in written["text"]
    assert not written["flagged"]
