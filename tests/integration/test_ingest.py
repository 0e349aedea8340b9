"""From a cohort on disk to what the later steps read: small standard-space studies, and one real patient."""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from willis.cohort.bids_import import import_bids
from willis.errors import CohortError, TableError
from willis.imaging.grid import Grid
from willis.imaging.prepare import template_brain
from willis.imaging.shards import StudyArrays, decode
from willis.imaging.territory import template_path
from willis.params import IngestParams
from willis.steps.ingest import IngestSummary, ingest

pytestmark = pytest.mark.integration

PARAMS = IngestParams(num_workers=1, studies_per_shard=4)
GRID = Grid(PARAMS.shape, PARAMS.spacing_mm)
PATIENTS = tuple(f"sub-{number:04d}" for number in range(8))
TRUNCATED, TWO_GRIDS = "sub-0003", "sub-0006"
KEPT = tuple(patient for patient in PATIENTS if patient not in (TRUNCATED, TWO_GRIDS))


def brain_adc(number: int) -> float:
    """Mean ADC of a patient's brain in 1e-6 mm^2/s: every patient can be told by it."""
    return 750.0 + 30 * number


def infarct_of(number: int) -> np.ndarray:
    """A box of (4 + number) x 4 x 3 voxels, left of the midline for even numbers."""
    infarct = np.zeros(GRID.shape, bool)
    first = 18 if number % 2 == 0 else 58
    infarct[first : first + 4 + number, 50:54, 24:27] = True
    return infarct


def write_study(cohort: Path, number: int) -> None:
    """DWI, ADC and FLAIR of one patient on the canonical grid."""
    random = np.random.default_rng(number)
    brain, infarct = template_brain(GRID), infarct_of(number)
    patient = PATIENTS[number]
    signals = {
        "dwi": (100.0, 4.0, 190.0, "dwi"),
        "adc": (brain_adc(number), 20.0, 420.0, "dwi"),
        "FLAIR": (200.0, 5.0, 210.0, "anat"),
    }
    for name, (mean, deviation, inside, folder) in signals.items():
        data = np.where(brain, mean + deviation * random.standard_normal(brain.shape), 0)
        data[infarct] = inside
        if patient == TWO_GRIDS and name == "adc":
            data = data[:, :-2]
        path = cohort / patient / folder / f"{patient}_space-MNI152NLin2009a_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.rint(data).astype(np.int16), GRID.affine), path)
        if patient == TRUNCATED and name == "dwi":
            path.write_bytes(path.read_bytes()[:20_000])


def write_table(cohort: Path, patients: tuple[str, ...], scores: tuple[object, ...]) -> None:
    """participants.tsv with age, NIHSS, scan time and outcome."""
    rows = ["participant_id\tage\tnihss\tscan_time\tmrs_90d"]
    for number, (patient, score) in enumerate(zip(patients, scores, strict=True)):
        rows.append(f"{patient}\t{60 + number}\tn/a\t2025-03-{number + 1:02d}T10:00:00Z\t{score}")
    (cohort / "participants.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, two of them broken, with garbage where only `evaluate` may look."""
    folder = tmp_path_factory.mktemp("ingest") / "cohort"
    for number in range(len(PATIENTS)):
        write_study(folder, number)
    write_table(folder, PATIENTS, (0, 4, 1, 2, "n/a", 5, 6, 3))
    truth = folder / "derivatives" / "truth"
    for name in ("truth.parquet", "sub-0001/sub-0001_space-MNI152NLin2009a_desc-lesion_mask.nii.gz"):
        (truth / name).parent.mkdir(parents=True, exist_ok=True)
        (truth / name).write_bytes(b"garbage")
    return folder


@pytest.fixture(scope="module")
def done(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestSummary, list[str]]:
    """The step's output, its summary, and every path that was opened or listed on the way."""
    out = tmp_path_factory.mktemp("ingested") / "out"
    with watched_paths() as seen:
        summary = ingest(cohort, out, PARAMS)
    return out, summary, seen


_watchers: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watchers and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | Path):
        _watchers[-1].append(str(arguments[0]))


@contextmanager
def watched_paths() -> Iterator[list[str]]:
    """Every path that the interpreter opens or lists meanwhile, by its own audit events."""
    sys.addaudithook(_note)
    _watchers.append([])
    try:
        yield _watchers[-1]
    finally:
        _watchers.clear()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_usable_studies_are_kept_in_order_and_broken_ones_listed_with_their_reasons(
    done: tuple[Path, IngestSummary, list[str]],
) -> None:
    out, summary, _ = done
    assert tuple(pd.read_parquet(out / "studies.parquet")["patient_id"]) == KEPT
    rejected = pd.read_parquet(out / "rejected.parquet").set_index("patient_id")["reason"].to_dict()
    assert set(rejected) == {TRUNCATED, TWO_GRIDS}
    assert "ends early or is damaged" in rejected[TRUNCATED] and TRUNCATED in rejected[TRUNCATED]
    assert "(88, 104, 40)" in rejected[TWO_GRIDS] and "(88, 102, 40)" in rejected[TWO_GRIDS]
    assert (summary.num_studies, summary.num_rejected, summary.num_patients) == (6, 2, 6)
    # outcomes of the kept: 0, 4, 1, n/a, 5, 3
    assert (summary.num_patients_with_outcome, summary.num_poor) == (5, 3)
    assert IngestSummary.model_validate_json((out / "ingest.json").read_text()) == summary


def test_each_row_of_studies_is_the_patient_whose_voxels_lie_there(
    done: tuple[Path, IngestSummary, list[str]],
) -> None:
    out, _, _ = done
    studies, arrays = pd.read_parquet(out / "studies.parquet"), StudyArrays.open(out)
    assert studies[["shard", "row"]].to_numpy().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    assert arrays.patient_ids == KEPT and arrays.sequence_present.all()
    for index, patient in enumerate(KEPT):
        adc = decode(arrays.volume(index), arrays.sequences)[arrays.sequences.index("adc")]
        # half a code step is .008; patients differ by .030
        assert np.median(adc[adc > 0]) == pytest.approx(brain_adc(int(patient[4:])) / 1000, abs=0.009)


def test_facts_are_what_was_drawn(done: tuple[Path, IngestSummary, list[str]]) -> None:
    facts = pd.read_parquet(done[0] / "facts.parquet")
    assert tuple(facts["patient_id"]) == KEPT
    for row in facts.itertuples():
        number = int(row.patient_id[4:])
        assert row.volume_ml == pytest.approx((4 + number) * 4 * 3 * 0.016, rel=0.03)
        assert row.laterality == ("left" if number % 2 == 0 else "right")
        assert row.adc_lesion_mm2_s == pytest.approx(420e-6, rel=0.02)
        assert row.event_time == pd.Timestamp(f"2025-03-{number + 1:02d}T10:00:00Z")


def test_the_table_has_one_typed_row_per_kept_patient(done: tuple[Path, IngestSummary, list[str]]) -> None:
    table = pd.read_parquet(done[0] / "table.parquet").set_index("patient_id")
    assert tuple(table.index) == KEPT
    assert table["age"].tolist() == [60 + int(patient[4:]) for patient in KEPT]
    assert table["nihss"].isna().all() and table["has_table"].all()
    assert table["poor_outcome"].fillna(-1).tolist() == [0, 1, 0, -1, 1, 1]


def test_nothing_below_truth_is_opened_or_listed(
    cohort: Path, done: tuple[Path, IngestSummary, list[str]], tmp_path: Path
) -> None:
    _, summary, seen = done
    assert any(path.startswith(str(cohort / "sub-0001")) for path in seen)
    assert not [path for path in seen if "truth" in Path(path).parts]
    without = tmp_path / "cohort"
    shutil.copytree(cohort, without, ignore=shutil.ignore_patterns("truth"))
    assert ingest(without, tmp_path / "out", PARAMS) == summary


def test_strict_fails_with_the_reasons_and_leaves_nothing(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="--strict: 2 studies are left out: sub-0003: .*; sub-0006: "):
        ingest(cohort, tmp_path / "out", PARAMS, strict=True)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_an_earlier_output_as_it_was(
    cohort: Path, done: tuple[Path, IngestSummary, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    before = digests(out)
    with pytest.raises(CohortError, match="--strict"):
        ingest(cohort, out, PARAMS, strict=True)
    assert digests(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_write_the_same_bytes_as_one(cohort: Path, tmp_path: Path) -> None:
    # a process gets eight studies at least: the cohort and its twin make sixteen
    twice = small_copy(cohort, tmp_path / "cohort", PATIENTS)
    for number, patient in enumerate(PATIENTS):
        for path in (cohort / patient).rglob("*.nii.gz"):
            twin = f"sub-{number + 8:04d}"
            copy = twice / str(path.relative_to(cohort)).replace(patient, twin)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    params = PARAMS.model_copy(update={"require_outcome": False})
    one, two = tmp_path / "one", tmp_path / "two"
    assert ingest(twice, one, params).num_studies == 12
    ingest(twice, two, params.model_copy(update={"num_workers": 2}))
    assert digests(one) == digests(two)


def small_copy(cohort: Path, root: Path, patients: tuple[str, ...]) -> Path:
    """A cohort of some of the patients, without a table."""
    for patient in patients:
        shutil.copytree(cohort / patient, root / patient)
    return root


def test_patients_keep_their_split_as_the_cohort_grows(
    cohort: Path, done: tuple[Path, IngestSummary, list[str]], tmp_path: Path
) -> None:
    patients = ("sub-0001", "sub-0002")
    small = small_copy(cohort, tmp_path / "cohort", patients)
    write_table(small, patients, (5, 0))
    ingest(small, tmp_path / "out", PARAMS)
    few = pd.read_parquet(tmp_path / "out" / "splits.parquet").set_index("patient_id")["split"]
    many = pd.read_parquet(done[0] / "splits.parquet").set_index("patient_id")["split"]
    assert few.to_dict() == many[list(patients)].to_dict()


def test_a_cohort_that_nothing_can_be_learnt_from_is_refused_and_leaves_nothing(
    cohort: Path, tmp_path: Path
) -> None:
    small = small_copy(cohort, tmp_path / "cohort", ("sub-0001",))
    write_table(small, ("sub-0001",), ("n/a",))
    with pytest.raises(CohortError, match="none of 1 patients has mrs_90d"):
        ingest(small, tmp_path / "out", PARAMS)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    summary = ingest(small, tmp_path / "out", PARAMS.model_copy(update={"require_outcome": False}))
    assert summary.num_studies == 1 and summary.num_patients_with_outcome == 0


def test_an_unknown_column_stops_the_step_before_any_volume_is_read(cohort: Path, tmp_path: Path) -> None:
    small = small_copy(cohort, tmp_path / "cohort", (TRUNCATED,))
    (small / "participants.tsv").write_text("participant_id\tNIHS\nsub-0003\t4\n")
    with pytest.raises(TableError, match="perhaps NIHS: nihss"):
        ingest(small, tmp_path / "out", PARAMS)


@pytest.fixture(scope="module")
def isles22(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real ISLES'22 case as a canonical cohort, with the expert's mask."""
    cohort = tmp_path_factory.mktemp("isles22") / "cohort"
    import_bids(data_dir / "isles22", cohort)
    return cohort


def read_raw(source: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine of one of the case's files, by nibabel alone."""
    (path,) = source.rglob(f"*_{kind}.nii.gz")
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def side_of_mask(source: Path) -> str:
    """The side of the mask's centre against the brain's, in scanner millimetres."""
    mask, affine = read_raw(source, "msk")
    dwi, _ = read_raw(source, "dwi")
    lesion, brain = ((affine @ [*np.argwhere(part).mean(axis=0), 1])[0] for part in (mask > 0, dwi > 0))
    return "left" if lesion < brain else "right"


def test_the_real_case_keeps_the_side_and_the_volume_of_the_experts_mask(
    isles22: Path, data_dir: Path, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(
        update={"require_outcome": False, "sequences": ("dwi", "adc", "flair", "lesion")}
    )
    summary = ingest(isles22, tmp_path / "out", params)
    facts = pd.read_parquet(tmp_path / "out" / "facts.parquet").iloc[0]
    study = pd.read_parquet(tmp_path / "out" / "studies.parquet").iloc[0]
    mask, affine = read_raw(data_dir / "isles22", "msk")
    volume_ml = np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert summary.num_studies == 1 and summary.num_rejected == 0
    assert facts["laterality"] == side_of_mask(data_dir / "isles22")
    assert facts["volume_ml"] == pytest.approx(volume_ml, rel=1e-4)
    assert study["registration_quality"] >= params.min_registration_quality
    assert study["adc_unit"] == "1e-3 mm^2/s" and study[["has_dwi", "has_adc", "has_flair"]].all()
    # on the grid the brain has the template's size, and the lesion grows as the brain does
    shares = StudyArrays.open(tmp_path / "out").volume(0)[3].astype(float) / 255
    dwi, _ = read_raw(data_dir / "isles22", "dwi")
    brain_ml = np.count_nonzero(dwi > 0) * abs(np.linalg.det(affine[:3, :3])) / 1000
    growth = template_ml() / brain_ml
    assert shares.sum() * GRID.voxel_ml == pytest.approx(growth * volume_ml, rel=0.1)


def template_ml() -> float:
    """Volume of the brain of ICBM152 as nilearn packages it."""
    image = nib.load(template_path("t1"))
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    return np.count_nonzero(np.asarray(image.dataobj)) * voxel_ml


def test_without_the_mask_diffusion_finds_the_core_of_what_the_expert_drew(
    isles22: Path, data_dir: Path, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(isles22, cohort, ignore=shutil.ignore_patterns("derivatives", "anat"))
    ingest(cohort, tmp_path / "out", PARAMS.model_copy(update={"require_outcome": False}))
    facts = pd.read_parquet(tmp_path / "out" / "facts.parquet").iloc[0]
    mask, affine = read_raw(data_dir / "isles22", "msk")
    adc, _ = read_raw(data_dir / "isles22", "adc")
    core = (mask > 0) & (adc < 0.62)
    core_ml = np.count_nonzero(core) * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert facts["laterality"] == side_of_mask(data_dir / "isles22")
    # part of the mask is above the threshold of the core, and specks below 0.05 ml count as noise
    assert 0.5 * core_ml < facts["volume_ml"] < 1.25 * core_ml
