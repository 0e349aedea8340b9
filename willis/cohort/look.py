"""A contact sheet of a cohort: slices of several patients, so that people can see that they are brains."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from willis.errors import CohortError

_SEQUENCES = ("dwi", "adc", "flair")
_ADC_SHOWN = 2600.0
_LEVELS = 2
"""Slices per patient: where the lesion looks largest, and a fixed level through the ventricles."""


def contact_sheet(cohort: Path, out: Path, num_patients: int = 12) -> Path:
    """Draw DWI, ADC and FLAIR of some patients, spread over the cohort, two slices each.

    Args:
        cohort: a BIDS cohort; nothing of its truth is read.
        out: PNG to write.
        num_patients: how many to show; fewer if the cohort has fewer.

    Returns:
        `out`.

    Raises:
        CohortError: no patient has a DWI volume.
    """
    from matplotlib.figure import Figure

    found = _patients(cohort)
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, num_patients).round().astype(int))]
    columns = _LEVELS * len(_SEQUENCES)
    across = 2 if len(chosen) > 4 else 1
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(1.55 * columns * across, 2.0 * down), facecolor="black")
    axes = figure.subplots(down, columns * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    table = _table(cohort)
    for number, folder in enumerate(chosen):
        row, block = number % down, number // down
        _draw(axes[row, block * columns : (block + 1) * columns], folder, table.get(folder.name, {}))
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.975, 0.02, 0.12)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, facecolor="black")
    return out


def _patients(cohort: Path) -> list[Path]:
    found = sorted(path for path in cohort.glob("sub-*") if _volume(path, "dwi") is not None)
    if not found:
        raise CohortError(
            f"{cohort} has no sub-*/**/*_dwi.nii.gz; a contact sheet needs at least one patient"
        )
    return found


def _volume(patient: Path, sequence: str) -> Path | None:
    names = {"dwi": "*_dwi.nii*", "adc": "*_adc.nii*", "flair": "*_FLAIR.nii*"}
    return next((p for p in sorted(patient.rglob(names[sequence])) if "rec-ADC" not in p.name), None)


def _table(cohort: Path) -> dict[str, dict[str, str]]:
    path = cohort / "participants.tsv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}


def _draw(axes: npt.NDArray[Any], patient: Path, row: Mapping[str, str]) -> None:
    """Fill one patient's strip: DWI, ADC, FLAIR at the lesion's level, then at the ventricles'."""
    volumes = {name: _read(_volume(patient, name)) for name in _SEQUENCES}
    levels = _levels(volumes["dwi"], volumes["adc"])
    for place, (level, name) in enumerate((level, name) for level in levels for name in _SEQUENCES):
        axis, volume = axes[place], volumes[name]
        if volume is not None:
            _show(axis, volume, name, min(level, volume.shape[2] - 1))
    words = [patient.name.removeprefix("sub-"), row.get("scanner", ""), *_facts(row)]
    axes[0].set_title("  ".join(w for w in words if w), color="0.85", fontsize=7, loc="left", pad=2)


def _facts(row: Mapping[str, str]) -> list[str]:
    labels = (("age", "age"), ("nihss", "NIHSS"), ("mrs_90d", "mRS"), ("mrs", "mRS"))
    return [f"{label} {row[name]}" for name, label in labels if row.get(name, "n/a") != "n/a"]


def _read(path: Path | None) -> npt.NDArray[np.float32] | None:
    """The volume in RAS+ order, its last axes of length 1 dropped."""
    if path is None:
        return None
    import nibabel as nib

    image: Any = nib.as_closest_canonical(nib.load(path))
    values: npt.NDArray[np.float32] = np.squeeze(np.asarray(image.dataobj, np.float32))
    return values if values.ndim == 3 else None


def _levels(dwi: npt.NDArray[np.float32] | None, adc: npt.NDArray[np.float32] | None) -> tuple[int, int]:
    if dwi is None:
        return 0, 0
    fixed = round(0.55 * dwi.shape[2])
    inside = dwi[dwi > 0]
    bright = dwi > 1.45 * float(np.median(inside)) if inside.size else dwi > 0
    if adc is not None and adc.shape == dwi.shape:
        bright &= (adc < 0.55 * float(np.median(adc[adc > 0]))) if (adc > 0).any() else bright
    area = bright.sum(axis=(0, 1))
    return (int(area.argmax()) if area.max() > 0 else fixed), fixed


def _show(axis: Any, volume: npt.NDArray[np.float32], name: str, level: int) -> None:
    """One slice as radiologists hang it: the patient's left on the viewer's right."""
    inside = volume[volume > 0]
    # the window is set on the brain, so that a lesion is bright and the brain is not lost
    top = {"adc": _ADC_SHOWN, "dwi": 2.1, "flair": 1.75}[name] * (
        1.0 if name == "adc" else float(np.median(inside)) if inside.size else 1.0
    )
    axis.imshow(
        volume[::-1, :, level].T, origin="lower", cmap="gray", vmin=0, vmax=top, interpolation="bicubic"
    )
