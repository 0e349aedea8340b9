"""Bringing a study to MNI space: rigid, then affine, by mutual information, with a measured quality.

All matrices are (4, 4) and take RAS+ millimetres to RAS+ millimetres. SimpleITK thinks in LPS+; the change of
sign stays inside this module.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from willis.imaging.territory import template_path
from willis.imaging.volume import Volume

Affine = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SEED = 7
MAX_ROTATION_DEGREES = 50.0
MIN_SCALE, MAX_SCALE = 0.7, 1.4
"""A brain is neither turned nor stretched beyond these against the template."""


@dataclass(frozen=True)
class Registration:
    """Where a study lies: its millimetres to the target's, and how well the brains cover each other (0-1)."""

    matrix: Affine
    quality: float


def to_standard(volume: Volume, brain: Bool) -> Registration:
    """Register a study's reference sequence to the ICBM152 template, rigid and then affine.

    Args:
        volume: the sequence in its own space.
        brain: its brain mask.

    Returns:
        Scanner millimetres to MNI millimetres; quality is the Dice overlap of the brain with the template's,
        0 when the result turns or stretches a brain as no head lies.
    """
    fixed, fixed_brain = _template()
    moving, moving_brain = _image(volume, brain), _mask(volume, brain)
    start = sitk.CenteredTransformInitializer(
        fixed_brain, moving_brain, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    rigid = _optimise(fixed, moving, fixed_brain, sitk.Euler3DTransform(start))
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    affine = _optimise(fixed, moving, fixed_brain, affine)
    # the optimiser's transform leads from the template to the study
    matrix = _inverse(_matrix(affine))
    quality = _dice(fixed_brain, moving_brain, affine) if _is_plausible(matrix) else 0.0
    return Registration(matrix, quality)


def between_sequences(fixed: Volume, fixed_brain: Bool, moving: Volume) -> Registration:
    """Register one sequence of a study to another of the same study, rigidly, from where the scanner put it.

    Returns:
        Millimetres of `moving` to millimetres of `fixed`; quality is 1 for a plausible result, 0 for one that
        turns or shifts the head as nobody moves between two sequences.
    """
    target, target_brain = _image(fixed, fixed_brain), _mask(fixed, fixed_brain)
    centre = target.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in target.GetSize()])
    start = sitk.Euler3DTransform()
    start.SetCenter(centre)
    grown = sitk.BinaryDilate(target_brain, [2, 2, 2])
    rigid = _optimise(target, _image(moving, None), grown, start)
    matrix = _inverse(_matrix(rigid))
    here = np.append(np.array(centre) * [-1, -1, 1], 1.0)
    moved = float(np.linalg.norm((matrix @ here - here)[:3]))
    return Registration(matrix, 1.0 if moved < 40 and _rotation_degrees(matrix) < 30 else 0.0)


@lru_cache(maxsize=1)
def _template() -> tuple[sitk.Image, sitk.Image]:
    image: Any = nib.load(template_path("t1"))
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    volume = Volume(np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.float32), affine, "ICBM152")
    return _image(volume, None), _mask(volume, volume.data > 0)


def _image(volume: Volume, brain: Bool | None) -> sitk.Image:
    data = volume.data if brain is None else np.where(brain, volume.data, 0)
    high = float(np.percentile(data[data > 0], 99.5)) if (data > 0).any() else 1.0
    # clipped, so that an infarct or a vessel does not use up the histogram
    return _place(
        sitk.GetImageFromArray(np.clip(data, 0, high).astype(np.float32).transpose(2, 1, 0)), volume
    )


def _mask(volume: Volume, brain: Bool) -> sitk.Image:
    return _place(sitk.GetImageFromArray(brain.astype(np.uint8).transpose(2, 1, 0)), volume)


def _place(image: sitk.Image, volume: Volume) -> sitk.Image:
    affine = LPS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _optimise(fixed: sitk.Image, moving: sitk.Image, fixed_mask: sitk.Image, start: Any) -> Any:
    # sums over threads differ in the last digits from run to run
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, SEED)
    method.SetMetricFixedMask(sitk.BinaryDilate(fixed_mask, [3, 3, 3]))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=150, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _matrix(transform: Any) -> Affine:
    """The transform as one RAS+ matrix; points p map to M (p - c) + c + t in LPS+."""
    turn = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre + shift - turn @ centre
    placed: Affine = LPS @ matrix @ LPS
    return placed


def _inverse(matrix: Affine) -> Affine:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _dice(fixed_brain: sitk.Image, moving_brain: sitk.Image, transform: Any) -> float:
    placed = sitk.Resample(moving_brain, fixed_brain, transform, sitk.sitkNearestNeighbor, 0)
    one = sitk.GetArrayViewFromImage(fixed_brain) > 0
    two = sitk.GetArrayViewFromImage(placed) > 0
    return float(2 * (one & two).sum() / max(int(one.sum() + two.sum()), 1))


def _is_plausible(matrix: Affine) -> bool:
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(
        np.linalg.det(matrix[:3, :3]) > 0
        and scales.min() >= MIN_SCALE
        and scales.max() <= MAX_SCALE
        and _rotation_degrees(matrix) <= MAX_ROTATION_DEGREES
    )


def _rotation_degrees(matrix: Affine) -> float:
    """Angle of the rotation nearest to the matrix."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
