"""The state of the brain beside the infarct: shares of dark and of bright FLAIR."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.phantoms import GRID, phantom, write, write_study
from willis.imaging.prepare import prepare_study
from willis.imaging.tissue import FlairShares, flair_shares
from willis.params import IngestParams


def test_shares_are_counted_against_the_brains_own_median() -> None:
    brain = np.array([100] * 700 + [50] * 200 + [160] * 100, np.uint8)
    assert flair_shares(brain) == FlairShares(flair_dark_share=0.2, flair_bright_share=0.1)
    assert flair_shares(brain.astype(np.float32) * 7.5) == flair_shares(brain), "the unit does not matter"


def test_what_is_not_above_0_is_no_brain() -> None:
    brain = np.array([100] * 150 + [30] * 50, np.float32)
    outside = np.array([0] * 500 + [-4] * 500, np.float32)
    assert flair_shares(np.concatenate([outside, brain])) == FlairShares(0.25, 0.0)


def test_a_handful_of_voxels_says_nothing() -> None:
    assert flair_shares(np.full(99, 100, np.uint8)) == FlairShares(None, None)


def test_the_acute_infarct_does_not_count_as_old_disease(tmp_path: Path) -> None:
    scene = phantom()
    old, brain = np.zeros(GRID.shape, bool), scene.flair > 0
    old[50:56, 60:66, 18:22] = True
    flair = np.where(scene.lesion == 1, 500, np.where(old & brain, 400, scene.flair)).astype(np.int16)
    files = replace(write_study(tmp_path), flair=write(tmp_path / "f.nii.gz", flair, GRID.affine))
    facts = prepare_study(files, IngestParams()).facts
    beside = brain & (scene.lesion == 0)
    assert facts.flair_bright_share == pytest.approx((old & beside).sum() / beside.sum(), rel=0.01)
    assert facts.flair_dark_share == 0


def test_without_a_lesion_to_look_for_they_are_measured_all_the_same(tmp_path: Path) -> None:
    facts = prepare_study(write_study(tmp_path, ("flair",)), IngestParams()).facts
    assert facts.infarct_present is None
    assert facts.flair_dark_share == 0 and facts.flair_bright_share == pytest.approx(0, abs=0.01)


def test_without_flair_they_are_unknown(tmp_path: Path) -> None:
    facts = prepare_study(write_study(tmp_path, ("dwi", "adc")), IngestParams()).facts
    assert facts.flair_dark_share is None and facts.flair_bright_share is None


def test_planes_stand_for_a_flair_that_is_no_volume_and_paint_for_nothing(tmp_path: Path) -> None:
    pixels = np.full((189, 503, 3), 100, np.uint8)
    pixels[:, :157] = 40  # the axial plane is fluid, and a third of it is painted over
    pixels[:63, :157] = [178, 50, 50]
    Image.fromarray(pixels).save(tmp_path / "planes.png")
    files = replace(write_study(tmp_path, ("dwi",)), planes=tmp_path / "planes.png")
    facts = prepare_study(files, IngestParams(planes=("flair",))).facts
    # two thirds of 157 columns against two planes of 157 and 189 columns
    assert facts.flair_dark_share == pytest.approx(2 / 3 * 157 / (2 / 3 * 157 + 157 + 189), abs=0.02)
    assert facts.flair_bright_share == 0
