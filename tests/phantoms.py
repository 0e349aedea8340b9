"""A brain in MNI space with one lesion on the patient's left, written as the files that a study has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from willis.cohort.bids import StudyFiles
from willis.imaging.grid import Grid
from willis.imaging.prepare import template_brain

GRID = Grid((88, 104, 40), (2.0, 2.0, 4.0))
LESION_MM = (-42.0, -10.0, 14.0)
RADIUS_MM = 12.0
SPACE = "space-MNI152NLin2009a_"


@dataclass(frozen=True)
class Phantom:
    """Arrays on GRID (RAS+): DWI, ADC in 1e-6 mm^2/s, FLAIR, and where the lesion is."""

    dwi: Any
    adc: Any
    flair: Any
    lesion: Any
    affine: Any = field(default_factory=lambda: GRID.affine)

    def sequence(self, name: str) -> Any:
        return getattr(self, name)


@lru_cache(maxsize=4)
def phantom(adc_in_lesion: float | None = 400) -> Phantom:
    """Brain DWI 300 +- 10, ADC 800, FLAIR 200; lesion DWI 600, ADC as told, FLAIR 300; air exactly 0.

    Without an ADC of the lesion there is no lesion.
    """
    rng = np.random.default_rng(3)
    brain = template_brain(GRID)
    position = np.indices(GRID.shape).T.dot(GRID.affine[:3, :3].T).T + GRID.affine[:3, 3][:, None, None, None]
    away = np.sqrt(sum((position[a] - LESION_MM[a]) ** 2 for a in range(3)))
    lesion = brain & (away < RADIUS_MM) & (adc_in_lesion is not None)
    noise = rng.normal(0, 10, GRID.shape)

    def image(healthy: float, ill: float) -> Any:
        return np.where(brain, np.where(lesion, ill, healthy) + noise, 0).round().astype(np.int16)

    adc = image(800, adc_in_lesion or 0)
    return Phantom(image(300, 600), adc, image(200, 300), lesion.astype(np.uint8))


def write(path: Path, data: Any, affine: Any, change: Callable[[Any], None] | None = None) -> Path:
    """Write NIfTI with both forms set; `change` may spoil the header first."""
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    if change is not None:
        change(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def reoriented(data: Any, affine: Any, axes: str) -> tuple[Any, Any]:
    """The same picture stored in another axis order, such as LPS."""
    target = nib.orientations.axcodes2ornt(axes)
    change = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target)
    moved = nib.orientations.apply_orientation(data, change)
    return moved, affine @ nib.orientations.inv_ornt_aff(change, data.shape)


def write_study(
    folder: Path,
    sequences: tuple[str, ...] = ("dwi", "adc", "flair"),
    patient: str = "sub-01",
    axes: str = "RAS",
    brain: Phantom | None = None,
) -> StudyFiles:
    """Write a phantom study and say where its files are."""
    paths = {}
    for name in sequences:
        data, affine = reoriented((brain or phantom()).sequence(name), GRID.affine, axes)
        paths[name] = write(folder / f"{patient}_{SPACE}{name}.nii.gz", data, affine)
    return StudyFiles(patient, patient, **paths, in_standard_space=True)


def write_cohort(root: Path, num_patients: int = 4) -> Path:
    """Write a BIDS cohort of phantoms whose outcomes alternate."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "phantoms", "BIDSVersion": "1.10.0"}')
    rows = ["participant_id\tage\tsex\tnihss\tmrs_90d\tscan_time\tadmission_time"]
    for number in range(1, num_patients + 1):
        patient = f"sub-{number:02d}"
        for name, part, suffix in (("dwi", "dwi", "dwi"), ("adc", "dwi", "adc"), ("flair", "anat", "FLAIR")):
            path = root / patient / part / f"{patient}_{SPACE}{suffix}.nii.gz"
            write(path, phantom().sequence(name), GRID.affine)
        cells = (
            patient,
            60 + number,
            "F",
            number,
            number % 2 * 4,
            "2024-01-02T08:00:00Z",
            "2024-01-02T06:00:00Z",
        )
        rows.append("\t".join(map(str, cells)))
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root
