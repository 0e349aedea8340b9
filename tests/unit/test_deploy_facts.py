"""A bundle whose facts are not measured where it would be deployed is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from willis.errors import SettingsError
from willis.models.bundle import Bundle, Lineage, Manifest
from willis.settings import Settings
from willis.steps.deploy import _check_facts


def _bundle(folder: Path, *facts: str) -> Bundle:
    (folder / "contract.json").write_text(json.dumps({"fact_columns": [{"name": name} for name in facts]}))
    manifest = Manifest(
        version="0123456789abcdef",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        files=(),
        sequences=("dwi",),
        feature_service=None,
        lineage=Lineage(),
        outcome="mrs_90d",
        intended_use="",
    )
    return Bundle(folder, manifest)


def test_facts_of_the_default_map_are_measured_here(tmp_path: Path) -> None:
    _check_facts(_bundle(tmp_path, "f_volume_ml", "f_laterality", "f_load_thalamus_left"), Settings())


def test_a_region_of_another_atlas_is_refused_with_the_setting_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"f?load_mcafr.*WILLIS_ATLAS"):
        _check_facts(_bundle(tmp_path, "f_volume_ml", "f_load_mcafr"), Settings())
