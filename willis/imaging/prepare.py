"""From a study's files to its codes and facts: the one road of `ingest`, `willis predict` and serving."""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from willis.cohort.bids import StudyFiles
from willis.cohort.schema import SEQUENCES, Sequence
from willis.errors import StudyError
from willis.imaging import lesion as lesions
from willis.imaging.grid import Affine, Grid, filled_voxels, pour, resample
from willis.imaging.lesion import Facts, Lesion, Signals
from willis.imaging.planes import read_planes
from willis.imaging.shards import NUM_PLANES, PLANE_SIZE, encode
from willis.imaging.territory import load_map, template_path
from willis.imaging.tissue import FlairShares, flair_shares
from willis.imaging.volume import Volume, read_volume
from willis.params import IngestParams

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
AdcUnit = Literal["mm^2/s", "1e-3 mm^2/s", "1e-6 mm^2/s"]

ADC_UNITS: tuple[tuple[AdcUnit, float, float, float], ...] = (
    ("mm^2/s", 2e-4, 5e-3, 1.0),
    ("1e-3 mm^2/s", 0.2, 5.0, 1e-3),
    ("1e-6 mm^2/s", 200.0, 5000.0, 1e-6),
)
"""Unit, lowest and highest plausible median of the brain in it, and its factor to mm^2/s."""


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """One study, ready for the model.

    Attributes:
        volume: (C, X, Y, Z) codes on the canonical grid, RAS+; absent sequences are 0.
        sequence_present: (C,).
        planes: (P, 96, 96), 0 where masked or absent; P is 0 when no planes are configured.
        facts: what was measured.
        registration_quality: 1.0 when the study came in standard space.
        adc_unit: the unit the ADC file was in; None without ADC.
        warnings: sentences for people; the study is usable nevertheless.
    """

    patient_id: str
    study_id: str
    volume: UInt8
    sequence_present: Bool
    planes: UInt8
    planes_present: bool
    facts: Facts
    registration_quality: float
    adc_unit: AdcUnit | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A study's volumes with where each lies in MNI space; ADC is in mm^2/s."""

    volumes: dict[Sequence, Volume]
    to_standard: dict[Sequence, Affine]
    brain: Bool
    brain_on_grid: Bool
    quality: float
    adc_unit: AdcUnit | None
    warnings: tuple[str, ...]

    def affine(self, sequence: Sequence) -> Affine:
        """Voxel index of one sequence to MNI millimetres."""
        placed: Affine = self.to_standard[sequence] @ self.volumes[sequence].affine
        return placed


_NOTHING = _Placed({}, {}, np.zeros(0, bool), np.zeros(0, bool), 1.0, None, ())
"""A study of planes alone."""


def prepare_study(files: StudyFiles, params: IngestParams) -> PreparedStudy:
    """Validate, register, resample, measure and code one study.

    Args:
        files: where its sequences are; any may be absent, not all.
        params: sequences, grid, thresholds.

    Raises:
        StudyError: a file breaks a rule, the sequences do not fit together, or registration failed.
    """
    volumes = _read(files, params)
    grid = Grid(params.shape, params.spacing_mm)
    planes = _planes(files, params)
    territories = load_map(files.atlas)
    placed = _place(volumes, files.in_standard_space, grid, params) if volumes else _NOTHING
    found = _lesion(placed, params)
    on_grid = {s: _on_grid(placed, s, grid, found) for s in placed.volumes}
    infarct = _infarct_on_grid(placed, found, on_grid, grid)
    if found is None:
        facts = lesions.unknown_facts(territories)
    else:
        facts = lesions.measure(found, territories, _signals(placed, found, on_grid, infarct))
    shares = _flair_shares(placed, on_grid, infarct, planes)
    return PreparedStudy(
        patient_id=files.patient_id,
        study_id=files.study_id,
        volume=np.stack([codes_of(on_grid.get(s), placed.brain_on_grid, s, grid) for s in params.sequences]),
        sequence_present=np.array([s in on_grid for s in params.sequences], bool),
        planes=planes,
        planes_present=bool(planes.any()),
        facts=facts.model_copy(update=asdict(shares)),
        registration_quality=placed.quality,
        adc_unit=placed.adc_unit,
        warnings=placed.warnings,
    )


def _read(files: StudyFiles, params: IngestParams) -> dict[Sequence, Volume]:
    paths = {s: getattr(files, s) for s in SEQUENCES if getattr(files, s) is not None}
    if not set(paths) & set(params.sequences) and not (params.planes and files.planes):
        raise StudyError(
            f"{files.study_id} has {', '.join(paths) or 'no volume'}; it needs one of "
            f"{', '.join(params.sequences)} (params.yaml: ingest.sequences)"
        )
    volumes = {s: read_volume(path, s, params.max_volume_mb) for s, path in paths.items()}
    _check_grids(volumes, files.in_standard_space)
    return volumes


def _check_grids(volumes: dict[Sequence, Volume], in_standard_space: bool) -> None:
    """DWI and ADC come from one acquisition; a mask was drawn on one of the native volumes."""
    pairs: list[tuple[Sequence, Sequence]] = [("dwi", "adc")]
    if not in_standard_space:
        pairs.append(("lesion", _reference(volumes)))
    for one, two in pairs:
        if one in volumes and two in volumes and not volumes[one].same_grid(volumes[two]):
            raise StudyError(
                f"{_difference(volumes[one], volumes[two])}; {one} and {two} must lie on one grid: "
                "resample one to the other, or take one of them out of the study"
            )


def _difference(one: Volume, two: Volume) -> str:
    if one.data.shape != two.data.shape:
        return f"{one.name} has shape {one.data.shape} and {two.name} {two.data.shape}"
    return f"the affines of {one.name} and {two.name} put a corner {one.shift_mm(two):.1f} mm apart"


def _reference(volumes: dict[Sequence, Volume]) -> Sequence:
    images = [s for s in SEQUENCES if s in volumes and s != "lesion"]
    return images[0] if images else "lesion"


def _planes(files: StudyFiles, params: IngestParams) -> UInt8:
    if params.planes and files.planes is not None:
        return read_planes(files.planes)
    return np.zeros((NUM_PLANES * len(params.planes), PLANE_SIZE, PLANE_SIZE), np.uint8)


def _place(
    volumes: dict[Sequence, Volume], in_standard_space: bool, grid: Grid, params: IngestParams
) -> _Placed:
    reference = _reference(volumes)
    if in_standard_space:
        placed = _already_standard(volumes, reference, grid)
    elif reference == "lesion":
        raise StudyError(
            f"{volumes['lesion'].name} is a mask on the scanner's grid without an image; "
            "nothing tells where it lies in the brain"
        )
    else:
        placed = _registered(volumes, reference, grid, params)
    return _with_adc_in_mm2_s(placed)


def _already_standard(volumes: dict[Sequence, Volume], reference: Sequence, grid: Grid) -> _Placed:
    brain_on_grid = template_brain(grid)
    image = volumes[reference]
    if reference == "lesion":
        brain = np.ones(image.data.shape, bool)
    elif grid.holds(image.data.shape, image.affine):
        brain = brain_on_grid = brain_on_grid & (image.data > 0)
    else:
        brain = (resample_template(image.data.shape, image.affine)) & (image.data > 0)
        brain_on_grid = brain_on_grid & (pour(filled_voxels(brain), image.affine, grid) > 0.5)
    if not brain.any():
        raise StudyError(f"{image.name} shows nothing where the brain is in MNI space; is it in that space?")
    return _Placed(volumes, {s: np.eye(4) for s in volumes}, brain, brain_on_grid, 1.0, None, ())


def _registered(
    volumes: dict[Sequence, Volume], reference: Sequence, grid: Grid, params: IngestParams
) -> _Placed:
    from willis.imaging import registration, skull

    image = volumes[reference]
    brain, had_skull = skull.brain_mask(image)
    warnings = [f"the skull was taken off {image.name}"] if had_skull else []
    result = registration.to_standard(image, brain)
    if result.quality < params.min_registration_quality:
        raise StudyError(
            f"{image.name}: registration quality is {result.quality:.2f}; it must be >= "
            f"{params.min_registration_quality:g} (params.yaml: ingest.min_registration_quality)"
        )
    matrices = dict.fromkeys(volumes, result.matrix)
    kept = dict(volumes)
    if "flair" in volumes and reference != "flair" and not volumes["flair"].same_grid(image):
        between = registration.between_sequences(image, brain, volumes["flair"])
        matrices["flair"] = result.matrix @ between.matrix
        if between.quality < params.min_registration_quality:
            del kept["flair"]
            warnings.append(f"{volumes['flair'].name} could not be laid over {image.name} and is left out")
    on_grid = pour(filled_voxels(brain), result.matrix @ image.affine, grid) > 0.5
    return _Placed(kept, matrices, brain, on_grid, result.quality, None, tuple(warnings))


def _with_adc_in_mm2_s(placed: _Placed) -> _Placed:
    if "adc" not in placed.volumes:
        return placed
    adc = placed.volumes["adc"]
    inside = adc.data[placed.brain] if adc.data.shape == placed.brain.shape else adc.data
    unit, factor = adc_unit(inside[inside > 0], adc.name)
    scaled = replace(adc, data=adc.data * np.float32(factor))
    return replace(placed, volumes=placed.volumes | {"adc": scaled}, adc_unit=unit)


def adc_unit(values: Float32, place: str) -> tuple[AdcUnit, float]:
    """Tell the unit of an ADC map by the median of the brain.

    Args:
        values: the brain's positive values.
        place: the file, for the message.

    Returns:
        The unit, and the factor to mm^2/s.

    Raises:
        StudyError: the median is plausible in none of the three units.
    """
    middle = float(np.median(values)) if values.size else 0.0
    for unit, low, high, factor in ADC_UNITS:
        if low <= middle <= high:
            return unit, factor
    raise StudyError(
        f"{place}: the brain's median ADC is {middle:g}, which is no brain in mm^2/s (0.0002-0.005), "
        "1e-3 mm^2/s (0.2-5) or 1e-6 mm^2/s (200-5000)"
    )


def _on_grid(placed: _Placed, sequence: Sequence, grid: Grid, lesion: Lesion | None) -> Float32:
    volume = placed.volumes[sequence]
    if sequence == "lesion" and lesion is not None:
        return pour(lesion.index, placed.affine(sequence), grid)
    return resample(volume.data, placed.affine(sequence), grid)


def _lesion(placed: _Placed, params: IngestParams) -> Lesion | None:
    volumes = placed.volumes
    if "lesion" in volumes:
        given = volumes["lesion"]
        return lesions.gather(given.data > 0, placed.affine("lesion"), given.voxel_ml, 0.0)
    if "dwi" not in volumes or "adc" not in volumes:
        return None
    mask = lesions.find_infarct(volumes["dwi"], volumes["adc"].data, placed.brain, params.adc_below_mm2_s)
    return lesions.gather(mask, placed.affine("dwi"), volumes["dwi"].voxel_ml, params.min_lesion_ml)


def _infarct_on_grid(
    placed: _Placed, lesion: Lesion | None, on_grid: dict[Sequence, Float32], grid: Grid
) -> Bool:
    if lesion is None:
        return np.zeros(grid.shape, bool)
    source: Sequence = "lesion" if "lesion" in placed.volumes else "dwi"
    share = on_grid[source] if source == "lesion" else pour(lesion.index, placed.affine(source), grid)
    inside: Bool = (share > 0) & (share >= min(0.5, float(share.max())))
    return inside


def _signals(placed: _Placed, lesion: Lesion, on_grid: dict[Sequence, Float32], infarct: Bool) -> Signals:
    if lesion.num_components == 0:
        return Signals()
    ratios = {
        s: lesions.mirrored_ratio(on_grid[s], infarct, placed.brain_on_grid)
        for s in ("dwi", "flair")
        if s in on_grid
    }
    adc = placed.volumes.get("adc")
    same = adc is not None and adc.data.shape == lesion.shape
    mean_adc = float(adc.data[tuple(lesion.index.T)].mean()) if adc is not None and same else None
    return Signals(mean_adc, ratios.get("dwi"), ratios.get("flair"))


def _flair_shares(
    placed: _Placed, on_grid: dict[Sequence, Float32], infarct: Bool, planes: UInt8
) -> FlairShares:
    """From the volume, or else from the planes, which lost the painted infarct at intake."""
    if "flair" in on_grid:
        return flair_shares(on_grid["flair"][placed.brain_on_grid & ~infarct])
    return flair_shares(planes)


def codes_of(values: Float32 | None, brain: Bool, sequence: Sequence, grid: Grid) -> UInt8:
    """Code one volume on the grid; DWI and FLAIR are standardised by the brain's median first.

    Args:
        values: (X, Y, Z), ADC in mm^2/s; None when the sequence is absent, which gives zeros.
        brain: (X, Y, Z); outside it, and where the volume is 0, the code is 0. A lesion mask ignores it.
        sequence: which one.
        grid: of the volume.
    """
    if values is None:
        return np.zeros(grid.shape, np.uint8)
    if sequence == "lesion":
        return encode(values, np.ones(grid.shape, bool), sequence)
    inside = brain & (values != 0)
    if sequence == "adc":
        return encode(values * np.float32(1e3), inside, sequence)
    middle, deviation = lesions.robust_scale(values[inside])
    return encode((values - np.float32(middle)) / np.float32(deviation), inside, sequence)


@lru_cache(maxsize=4)
def template_brain(grid: Grid) -> Bool:
    """ICBM152's brain on the grid, two voxels wider, so that a brain in MNI space fits into it."""
    return resample_template(grid.shape, grid.affine)


def resample_template(shape: tuple[int, ...], affine: Affine) -> Bool:
    """ICBM152's brain on any grid in MNI space, by nearest voxel, 4 mm wider than the template's own."""
    from scipy import ndimage

    image = nib.load(template_path("t1"))
    brain = (np.asarray(image.dataobj) > 0)[::2, ::2, ::2]  # type: ignore[attr-defined]
    wider = ndimage.binary_dilation(ndimage.binary_fill_holes(brain), iterations=2).astype(np.uint8)
    source = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])  # type: ignore[attr-defined]
    to_source = np.linalg.inv(source) @ affine
    placed: Bool = ndimage.affine_transform(
        wider, to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=0
    ).astype(bool)
    return placed
