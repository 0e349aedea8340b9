"""Bundles: what makes a version, and what is refused."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.bundles import NOON, a_bundle
from willis.errors import BundleError
from willis.models.bundle import (
    MANIFEST,
    Bundle,
    Lineage,
    intended_use,
    read_manifest,
    version_of,
    write_bundle,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return a_bundle(tmp_path)


def sources_of(bundle: Bundle) -> dict[str, Path]:
    return {file.name: bundle.folder / file.name for file in bundle.manifest.files}


def rewrite_manifest(bundle: Bundle, **changes: object) -> None:
    path = bundle.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_loads_as_it_was_written(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder)
    assert loaded.manifest == bundle.manifest
    assert len(loaded.reference()) == 20
    assert loaded.patients().train == ("t1", "t2")
    assert "research only" in loaded.manifest.notice


def test_the_intended_use_claims_what_was_learned_and_no_more(bundle: Bundle) -> None:
    assert bundle.manifest.intended_use == intended_use("mrs_90d", ("dwi", "adc"), ())
    assert "(mRS 3-6) at 90 days for adults" in bundle.manifest.intended_use
    assert "from DWI, ADC, the table" in bundle.manifest.intended_use
    discharge = intended_use("mrs", ("lesion",), ("flair",))
    assert "at a time not known to be 90 days" in discharge
    assert "at 90 days" not in discharge
    assert "from a lesion mask, FLAIR planes, the table" in discharge
    assert "DWI" not in discharge


def test_the_version_is_the_digest_of_the_sorted_names_and_digests(bundle: Bundle) -> None:
    pairs = sorted(
        [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in bundle.folder.iterdir()
        if path.name != MANIFEST
    )
    text = json.dumps(pairs, separators=(",", ":")).encode()
    assert bundle.version == hashlib.sha256(text).hexdigest()[:16]
    assert version_of({"b": "2", "a": "1"}) == version_of({"a": "1", "b": "2"})


def test_equal_files_give_an_equal_version_at_another_time_and_place(bundle: Bundle, tmp_path: Path) -> None:
    again = write_bundle(
        tmp_path / "again", sources_of(bundle), Lineage(), ("dwi", "adc"), NOON + timedelta(days=9), "mrs_90d"
    )
    assert again.version == bundle.version


def test_one_other_byte_gives_another_version(bundle: Bundle, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Another card\n")
    sources = sources_of(bundle) | {"model_card.md": card}
    assert (
        write_bundle(tmp_path / "b", sources, Lineage(), ("dwi",), NOON, "mrs_90d").version != bundle.version
    )


def test_a_changed_file_is_refused_by_name(bundle: Bundle) -> None:
    path = bundle.folder / "calibration.json"
    path.write_text('{"temperature": 9}')
    with pytest.raises(BundleError, match=r"calibration.json has sha256"):
        Bundle.load(bundle.folder)


def test_a_missing_file_is_refused_by_name(bundle: Bundle) -> None:
    (bundle.folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model.safetensors is missing"):
        Bundle.load(bundle.folder)


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle: Bundle) -> None:
    (bundle.folder / "model.pt").write_bytes(b"\x80\x02")
    with pytest.raises(BundleError, match=r"model\.pt"):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize("name", ["model.pkl", "../up.json", "sub/x.json", "weights.bin"])
def test_a_name_that_could_run_code_or_leave_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    files = [file.model_dump() for file in bundle.manifest.files]
    rewrite_manifest(bundle, files=[*files, files[0] | {"name": name}])
    with pytest.raises(BundleError, match="is refused"):
        Bundle.load(bundle.folder)


def test_weights_that_are_a_pickle_are_refused_under_any_name(bundle: Bundle, tmp_path: Path) -> None:
    import pickle

    pickled = tmp_path / "weights"
    pickled.write_bytes(pickle.dumps({"layer.weight": [1.0] * 40}))
    sources = sources_of(bundle) | {"model.safetensors": pickled}
    with pytest.raises(BundleError, match="no safetensors file"):
        write_bundle(tmp_path / "b", sources, Lineage(), ("dwi",), NOON, "mrs_90d")
    assert not (tmp_path / "b").exists()


def test_a_manifest_of_another_version_is_refused(bundle: Bundle) -> None:
    rewrite_manifest(bundle, version="0" * 16)
    with pytest.raises(BundleError, match=f"its files derive {bundle.version}"):
        Bundle.load(bundle.folder)


def test_a_damaged_manifest_is_named(bundle: Bundle) -> None:
    (bundle.folder / MANIFEST).write_text('{"version": 3')
    with pytest.raises(BundleError, match=MANIFEST):
        read_manifest(bundle.folder / MANIFEST)


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist; is .* a bundle"):
        Bundle.load(tmp_path)


def test_a_missing_source_leaves_nothing_behind(bundle: Bundle, tmp_path: Path) -> None:
    sources = sources_of(bundle) | {"evaluation.json": tmp_path / "absent.json"}
    with pytest.raises(BundleError, match=r"absent.json does not exist"):
        write_bundle(tmp_path / "b", sources, Lineage(), ("dwi",), NOON, "mrs_90d")
    assert not (tmp_path / "b").exists()


def test_an_incomplete_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    sources = sources_of(bundle)
    del sources["reference.parquet"]
    with pytest.raises(BundleError, match=r"does not list reference.parquet"):
        write_bundle(tmp_path / "b", sources, Lineage(), ("dwi",), NOON, "mrs_90d")
