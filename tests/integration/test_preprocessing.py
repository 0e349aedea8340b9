"""A bundle carries how its studies were prepared, from `ingest` to `predict`, whatever today's params say."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.served import SMALL, publish, small_bundle, test_settings
from tests.unit.test_deploy import OTHERS
from willis.casework import CasePrediction, predict_cohort
from willis.cohort.synthetic import synthesise
from willis.errors import SettingsError
from willis.models.bundle import Bundle
from willis.models.preprocessing import PREPROCESSING, AtlasIdentity, Preprocessing
from willis.params import CohortParams, IngestParams, Params
from willis.settings import Settings
from willis.steps.ingest import ingest

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Place:
    """Two patients, and a registry with a bundle that was trained on SMALL."""

    cohort: Path
    bundle: Bundle
    settings: Settings
    predictions: list[CasePrediction]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    cohort = root / "cohort"
    synthesise(cohort, CohortParams(num_patients=2, seed=3, num_workers=1), purpose="stream")
    settings = test_settings(root)
    bundle = small_bundle(root / "bundle")
    publish(bundle, settings)
    return Place(cohort, bundle, settings, predict_cohort(cohort, "champion", Params(ingest=SMALL), settings))


def with_atlas(place: Place, root: Path, content: bytes) -> Path:
    """The same cohort, had it brought an atlas."""
    cohort = root / "cohort"
    shutil.copytree(place.cohort, cohort)
    folder = cohort / "derivatives" / "atlas"
    folder.mkdir(parents=True)
    (folder / "atlas.nii.gz").write_bytes(content)
    return cohort


@pytest.mark.parametrize("name", OTHERS)
def test_predict_prepares_studies_as_the_bundle_learned_and_says_what_differs(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given = Params(ingest=SMALL.model_copy(update={name: OTHERS[name]}))
    assert predict_cohort(place.cohort, "champion", given, place.settings) == place.predictions
    assert capsys.readouterr().err.count(f"bundle {place.bundle.version}: ingest.{name} is ") == 1


def test_predict_says_nothing_where_nothing_differs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    predict_cohort(place.cohort, "champion", Params(ingest=SMALL), place.settings)
    assert "ingest." not in capsys.readouterr().err


def test_ingest_writes_what_it_prepared_by(place: Place, tmp_path: Path) -> None:
    params = SMALL.model_copy(update={"adc_below_mm2_s": 600e-6, "num_workers": 1})
    ingest(place.cohort, tmp_path / "out", params)
    made = Preprocessing.model_validate_json((tmp_path / "out" / PREPROCESSING).read_bytes())
    assert made == Preprocessing.of(params, None)
    assert made.applied_to(IngestParams(num_workers=1)) == params


def test_another_atlas_in_the_cohort_does_not_change_the_facts_of_the_bundle(
    place: Place, tmp_path: Path
) -> None:
    cohort = with_atlas(place, tmp_path, b"not even a volume")
    found = predict_cohort(cohort, "champion", Params(ingest=SMALL), place.settings)
    assert found == place.predictions


def test_the_atlas_of_the_bundle_is_found_by_its_content(tmp_path: Path) -> None:
    for name, content in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).write_bytes(content)
    made = Preprocessing.of(SMALL, tmp_path / "two")
    (tmp_path / "copy").write_bytes(b"2")
    assert made.atlas == AtlasIdentity.of(tmp_path / "two")
    assert made.atlas_among(None, tmp_path / "one", tmp_path / "copy") == tmp_path / "copy"
    with pytest.raises(SettingsError, match=r"WILLIS_ATLAS is None; .* measured by two"):
        made.atlas_among(tmp_path / "one")
    with pytest.raises(SettingsError, match=r"WILLIS_ATLAS is .*one; .* measured by two"):
        made.check_atlas(tmp_path / "one")
    with pytest.raises(SettingsError, match="nowhere cannot be read"):
        made.check_atlas(tmp_path / "nowhere")
