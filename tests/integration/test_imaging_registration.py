from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tests.phantoms import reoriented, write
from willis.cohort.bids import StudyFiles
from willis.errors import StudyError
from willis.imaging import registration
from willis.imaging.prepare import prepare_study
from willis.imaging.skull import brain_mask, is_stripped
from willis.imaging.territory import template_path
from willis.imaging.volume import Volume
from willis.params import IngestParams

SHAPE, SPACING = (72, 84, 64), 3.0
LESION_MM = np.array([-40.0, -12.0, 20.0])
NATIVE = np.array([[SPACING, 0, 0, -107], [0, SPACING, 0, -126], [0, 0, SPACING, -96], [0, 0, 0, 1.0]])


def head_pose() -> Any:
    """Where the template's millimetres lie in the scanner: 10 degrees, 6 % larger, shifted."""
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    return np.array([[1.06 * c, -1.06 * s, 0, 6], [1.06 * s, 1.06 * c, 0, -8], [0, 0, 1.0, 10], [0, 0, 0, 1]])


@lru_cache(maxsize=1)
def native() -> tuple[Any, Any, Any]:
    """DWI-like and ADC arrays of the template's brain in that pose, RAS+, with a lesion on the left."""

    def placed(name: str) -> Any:
        image: Any = nib.load(template_path(name))
        to_source = np.linalg.inv(image.affine) @ np.linalg.inv(head_pose()) @ NATIVE
        data = np.asarray(image.dataobj, np.float32)
        return ndimage.affine_transform(
            data, to_source[:3, :3], to_source[:3, 3], output_shape=SHAPE, order=1
        )

    grey, white, head = (placed(name) for name in ("gm", "wm", "t1"))
    brain = ndimage.binary_fill_holes(head > 20)
    centre = (head_pose() @ np.append(LESION_MM, 1))[:3]
    away = np.linalg.norm(np.indices(SHAPE).T @ NATIVE[:3, :3].T + NATIVE[:3, 3] - centre, axis=-1).T
    lesion = brain & (away < 14)
    noise = np.random.default_rng(5).normal(0, 8, SHAPE)
    dwi = np.where(brain, 120 + 0.9 * grey + 0.5 * white + noise, 0)
    dwi[lesion] += 350
    adc = np.where(brain, np.where(lesion, 420, 800 + noise), 0)
    return dwi.astype(np.int16), adc.astype(np.int16), lesion


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_a_native_study_is_registered_and_left_stays_left(tmp_path: Path, axes: str) -> None:
    dwi, adc, lesion = native()
    paths = {
        name: write(tmp_path / f"{name}.nii.gz", *reoriented(data, NATIVE, axes))
        for name, data in (("dwi", dwi), ("adc", adc))
    }
    study = prepare_study(StudyFiles("sub-1", "sub-1", **paths), IngestParams())
    assert study.registration_quality > 0.93
    assert study.facts.laterality == "left" and study.facts.territory == "mca"
    native_ml = lesion.sum() * SPACING**3 / 1000
    assert study.facts.volume_ml == pytest.approx(native_ml, rel=0.05), "measured before registration"
    bright = np.argwhere(study.volume[0] > 200).mean(axis=0) * [2, 2, 4] + [-87, -121, -74]
    assert np.linalg.norm(bright - LESION_MM) < 6


def test_a_picture_that_is_no_brain_fails_registration_with_its_quality(tmp_path: Path) -> None:
    slab = np.zeros(SHAPE, np.int16)
    slab[4:68, 4:80, 30:36] = np.random.default_rng(0).integers(100, 300, (64, 76, 6))
    path = write(tmp_path / "dwi.nii.gz", slab, NATIVE)
    with pytest.raises(StudyError, match=r"registration quality is 0\.\d+; it must be >= 0.8"):
        prepare_study(StudyFiles("sub-1", "sub-1", dwi=path), IngestParams())


def test_a_shift_between_two_sequences_is_found() -> None:
    dwi, _, _ = native()
    fixed = Volume(dwi.astype(np.float32), NATIVE, "dwi")
    moved = NATIVE.copy()
    moved[:3, 3] += [5, -4, 3]
    other = Volume((600 - dwi) * (dwi > 0).astype(np.float32), moved, "flair")
    result = registration.between_sequences(fixed, dwi > 0, other)
    np.testing.assert_allclose(result.matrix[:3, 3], [-5, 4, -3], atol=1.0)
    assert result.quality == 1.0


def with_skull() -> Any:
    """The brain in a ring of dark bone and bright scalp, in noisy air."""
    dwi, _, _ = native()
    inside = ndimage.binary_closing(dwi > 0, iterations=2)
    bone, scalp = ndimage.binary_dilation(inside, iterations=3), ndimage.binary_dilation(inside, iterations=5)
    rng = np.random.default_rng(1)
    return np.where(inside, dwi, np.where(bone, 15, np.where(scalp, 110, 0))) + rng.rayleigh(6, SHAPE)


def test_a_skull_is_seen_and_taken_off() -> None:
    truth = ndimage.binary_fill_holes(native()[0] > 0)
    volume = Volume(with_skull().astype(np.float32), NATIVE, "dwi")
    mask, had_skull = brain_mask(volume)
    assert had_skull
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.93


def test_a_stripped_brain_is_left_as_it_is() -> None:
    volume = Volume(native()[0].astype(np.float32), NATIVE, "dwi")
    assert is_stripped(volume)
    mask, had_skull = brain_mask(volume)
    assert not had_skull and (mask >= (volume.data > 0)).all()


def test_what_has_no_brains_volume_is_refused() -> None:
    data = np.zeros(SHAPE, np.float32)
    data[30:34, 30:34, 30:34] = 5
    with pytest.raises(StudyError, match="a brain has 400 to 2400"):
        brain_mask(Volume(data, NATIVE, "dwi.nii.gz"))
