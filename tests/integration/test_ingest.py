import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tests.phantoms import GRID, SPACE, phantom, write, write_cohort
from willis.cohort.bids import read_cohort
from willis.cohort.soop import import_soop
from willis.cohort.table import SOOP_COLUMNS, SOOP_IGNORED
from willis.errors import CohortError, StepError, TableError
from willis.imaging.prepare import prepare_study
from willis.imaging.shards import StudyArrays, decode
from willis.params import IngestParams
from willis.steps.ingest import IngestSummary, ingest

PARAMS = IngestParams(num_workers=1, studies_per_shard=3)
Spoil = Callable[[Path], object]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def dwi_of(cohort: Path, patient: str) -> Path:
    return cohort / patient / "dwi" / f"{patient}_{SPACE}dwi.nii.gz"


def test_a_cohort_becomes_arrays_facts_table_and_splits_in_one_order(tmp_path: Path) -> None:
    summary = ingest(write_cohort(tmp_path / "cohort"), tmp_path / "out", PARAMS)
    arrays = StudyArrays.open(tmp_path / "out")
    frames = {
        n: pd.read_parquet(tmp_path / "out" / f"{n}.parquet") for n in ("studies", "facts", "table", "splits")
    }
    for frame in frames.values():
        assert tuple(frame["patient_id"]) == arrays.patient_ids == ("sub-01", "sub-02", "sub-03", "sub-04")
    assert frames["studies"]["shard"].tolist() == [0, 0, 0, 1] and frames["studies"]["row"].tolist() == [
        0,
        1,
        2,
        0,
    ]
    assert (
        frames["facts"]["laterality"].eq("left").all()
        and frames["facts"]["event_time"].eq(frames["studies"]["scan_time"]).all()
    )
    assert frames["table"]["poor_outcome"].tolist() == [1, 0, 1, 0]
    assert (summary.num_studies, summary.num_rejected, summary.num_patients_with_outcome) == (4, 0, 4)
    assert IngestSummary.model_validate_json((tmp_path / "out" / "ingest.json").read_text()) == summary


def spoiled_header(**fields: object) -> Spoil:
    """Write the phantom's DWI again with other fields in its header."""

    def spoil(path: Path) -> None:
        write(path, phantom().dwi, GRID.affine)
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content), compresslevel=1))

    return spoil


def replaced(make: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """Write other voxels in place of the phantom's DWI."""
    return lambda path: write(path, make(phantom().dwi), GRID.affine)


def with_nan(data: np.ndarray) -> np.ndarray:
    spoilt = data.astype(np.float32)
    spoilt[:44] = np.nan
    return spoilt


BAD_STUDIES: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-300]), "ends early or is damaged"),
    "no NIfTI": (lambda path: path.write_text("not a NIfTI file"), "starts with b'not '"),
    "2-D": (replaced(lambda data: data[:, :, 20]), "has shape (88, 104); a volume has three axes"),
    "4-D": (replaced(lambda data: np.stack([data] * 3, axis=-1)), "4-D with shape (88, 104, 40, 3)"),
    "NaN": (replaced(with_nan), "NaN or infinity in 50.00%"),
    "all zero": (replaced(np.zeros_like), "holds 0 in every voxel"),
    "forms": (spoiled_header(qoffset_x=90), "qform and sform put a corner"),
    "no form": (spoiled_header(qform_code=0, sform_code=0), "neither qform nor sform"),
    "spacing": (spoiled_header(pixdim=[1, 2, 2, 0, 1, 1, 1, 1]), "spacing_mm[2] is 0"),
    "scale": (spoiled_header(scl_slope=1, scl_inter=np.nan), "a scale that cannot be applied"),
    "bomb": (spoiled_header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "unpacks to 54000000 MB"),
    "grid": (replaced(lambda data: data[:-1]), "must lie on one grid"),
}


def test_every_bad_study_is_listed_with_its_reason_and_no_good_one_is_lost(tmp_path: Path) -> None:
    """Twelve patients, one for each kind of bad DWI, between two good ones."""
    cohort = write_cohort(tmp_path / "cohort", len(BAD_STUDIES) + 2)
    bad = {f"sub-{number:02d}": how for number, how in enumerate(BAD_STUDIES.values(), start=2)}
    for patient, (spoil, _) in bad.items():
        spoil(dwi_of(cohort, patient))
    summary = ingest(cohort, tmp_path / "out", PARAMS)
    rejected = pd.read_parquet(tmp_path / "out" / "rejected.parquet").set_index("study_id")["reason"]
    assert sorted(rejected.index) == sorted(bad)
    for patient, (_, words) in bad.items():
        assert words in rejected[patient] and dwi_of(cohort, patient).name in rejected[patient]
    assert summary.num_studies == 2 and summary.num_rejected == len(bad)
    kept = StudyArrays.open(tmp_path / "out")
    assert kept.patient_ids == ("sub-01", f"sub-{len(bad) + 2}")
    good = ingest(write_cohort(tmp_path / "good", 2), tmp_path / "alone", PARAMS)
    alone = StudyArrays.open(tmp_path / "alone")
    assert good.num_studies == 2
    np.testing.assert_array_equal(kept.volume(0), alone.volume(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "cohort", "good", "out"]


def test_strict_fails_on_a_broken_study_and_writes_nothing(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    dwi_of(cohort, "sub-02").write_bytes(b"")
    with pytest.raises(CohortError, match=r"--strict: 1 studies are left out: sub-02: "):
        ingest(cohort, tmp_path / "out", PARAMS, strict=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort"]


def test_truth_is_never_read(tmp_path: Path) -> None:
    """Without the folder, with it, and with it swapped for a trap: the same bytes."""
    cohort = write_cohort(tmp_path / "cohort")
    ingest(cohort, tmp_path / "without", PARAMS)
    truth = cohort / "derivatives" / "truth" / "sub-01"
    write(truth / f"sub-01_{SPACE}desc-lesion_mask.nii.gz", 1 - phantom().lesion, GRID.affine)
    ingest(cohort, tmp_path / "with", PARAMS)
    shutil.rmtree(cohort / "derivatives" / "truth")
    os.mkfifo(cohort / "derivatives" / "truth")  # whoever opens it waits for ever
    ingest(cohort, tmp_path / "trap", PARAMS)
    assert contents(tmp_path / "without") == contents(tmp_path / "with") == contents(tmp_path / "trap")


def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", 16)
    ingest(cohort, tmp_path / "one", PARAMS)
    ingest(cohort, tmp_path / "two", PARAMS.model_copy(update={"num_workers": 2}))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_patients_keep_their_split_when_the_cohort_grows(tmp_path: Path) -> None:
    ingest(write_cohort(tmp_path / "small", 4), tmp_path / "a", PARAMS)
    ingest(write_cohort(tmp_path / "large", 8), tmp_path / "b", PARAMS)
    small, large = (
        pd.read_parquet(tmp_path / n / "splits.parquet").set_index("patient_id")["split"] for n in "ab"
    )
    assert small.equals(large[small.index])


def rewrite(cohort: Path, **columns: object) -> None:
    """Change or add columns of participants.tsv."""
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str)
    table.assign(**columns).to_csv(cohort / "participants.tsv", sep="\t", index=False)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"nihs": "3"}, TableError, r"column 'nihs' .*perhaps nihs: nihss.*ingest\.ignored_columns"),
        ({"glucose_mmol_l": "126"}, TableError, r"glucose_mmol_l is 126 for sub-01.*divide by 18\.02"),
        ({"mrs_90d": ["7", "9", "12", "0"]}, TableError, r"mrs is 7 for sub-01.*must be 0 to 6"),
        ({"mrs_90d": "1"}, CohortError, "all 4 patients with an outcome have mrs_90d < 3"),
        ({"mrs_90d": "6"}, CohortError, "all 4 patients with an outcome have mrs_90d >= 3"),
        ({"mrs_90d": "n/a"}, CohortError, r"none of 4 patients has mrs_90d.*ingest\.require_outcome"),
    ],
)
def test_a_table_that_is_refused_leaves_the_earlier_output_untouched(
    tmp_path: Path, columns: dict[str, object], error: type[Exception], message: str
) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    ingest(cohort, tmp_path / "out", PARAMS)
    before = contents(tmp_path / "out")
    rewrite(cohort, **columns)
    with pytest.raises(error, match=message):
        ingest(cohort, tmp_path / "out", PARAMS)
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "out"]


def test_a_bad_row_leaves_its_patient_out_and_no_other(tmp_path: Path) -> None:
    """An outcome outside 0-6, two rows of a patient that contradict each other, and the same row twice."""
    cohort = write_cohort(tmp_path / "cohort", 6)
    rewrite(cohort, mrs_90d=["4", "0", "4", "0", "4", "7"])
    rows = (cohort / "participants.tsv").read_text().splitlines()
    rows += [rows[1], rows[2].replace("\t62\t", "\t26\t")]
    (cohort / "participants.tsv").write_text("\n".join(rows) + "\n")
    ingest(cohort, tmp_path / "out", PARAMS)
    rejected = pd.read_parquet(tmp_path / "out" / "rejected.parquet").set_index("patient_id")["reason"]
    assert rejected["sub-06"].startswith(
        "mrs is 7; it must be 0 to 6 points, a whole number (participants.tsv)"
    )
    assert rejected["sub-02"] == "2 rows of participants.tsv contradict each other; keep one"
    assert StudyArrays.open(tmp_path / "out").patient_ids == ("sub-01", "sub-03", "sub-04", "sub-05")


def test_missing_sequences_and_values_are_normal(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    dwi_of(cohort, "sub-02").unlink()
    rewrite(cohort, age=["n/a", "62", "", "64"], nihss="n/a")
    summary = ingest(cohort, tmp_path / "out", PARAMS)
    assert (summary.num_studies, summary.num_rejected, summary.num_remarks) == (4, 0, 0)
    studies = pd.read_parquet(tmp_path / "out" / "studies.parquet")
    assert studies["has_dwi"].tolist() == [True, False, True, True] and studies["has_adc"].all()
    facts = pd.read_parquet(tmp_path / "out" / "facts.parquet")
    assert facts["volume_ml"].isna().tolist() == [False, True, False, False]
    table = pd.read_parquet(tmp_path / "out" / "table.parquet")
    assert table["age"].isna().tolist() == [True, False, True, False] and table["nihss"].isna().all()


def test_studies_without_outcomes_are_prepared_when_none_is_required(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    (cohort / "participants.tsv").unlink()
    with pytest.raises(CohortError, match="none of 4 patients has mrs_90d"):
        ingest(cohort, tmp_path / "out", PARAMS)
    summary = ingest(cohort, tmp_path / "out", PARAMS.model_copy(update={"require_outcome": False}))
    assert summary.num_studies == 4 and summary.num_with_table == 0


def test_outcomes_that_cannot_be_learnt_from_are_told_before_any_volume_is_read(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    rewrite(cohort, mrs_90d="n/a")
    for volume in cohort.rglob("*.nii.gz"):
        volume.write_bytes(b"")
    with pytest.raises(CohortError, match="none of 4 patients has mrs_90d"):
        ingest(cohort, tmp_path / "out", PARAMS)


def test_a_full_disk_leaves_the_earlier_output_untouched(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    ingest(cohort, tmp_path / "out", PARAMS)
    before = contents(tmp_path / "out")
    code = (
        "import resource, sys; from pathlib import Path; from willis.steps.ingest import ingest;"
        "from willis.params import IngestParams;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000));"
        "ingest(Path(sys.argv[1]), Path(sys.argv[2]), IngestParams(num_workers=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cohort), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "nothing of it was kept and an earlier output is untouched" in done.stderr.replace("\n", " ")
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "out"]


def test_a_killed_run_leaves_no_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", 12)
    code = (
        "import sys; from pathlib import Path; from willis.steps.ingest import ingest;"
        "from willis.params import IngestParams;"
        "ingest(Path(sys.argv[1]), Path(sys.argv[2]), IngestParams(num_workers=1))"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(cohort), str(tmp_path / "out")])
    shards = tmp_path / ".out.part" / "shards"
    while not (shards.is_dir() and any(shards.iterdir())) and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "out").exists()
    ingest(cohort, tmp_path / "out", PARAMS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(StepError, match="holds files that this step did not write"):
        ingest(write_cohort(tmp_path / "cohort"), tmp_path / "out", PARAMS)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_real_soop_patients_keep_lesion_volume_side_and_table(tmp_path: Path, data_dir: Path) -> None:
    source = tmp_path / "source"
    (source / "NIfTI").mkdir(parents=True)
    (source / "PNG").mkdir()
    real = data_dir / "soop"
    names = ("sub-1000", "sub-1003", "sub-1015", "sub-1024", "sub-446", "sub-1")
    for name in names:
        shutil.copy(real / "NIfTI" / f"bwsr{name}_lesion.nii.gz", source / "NIfTI")
        shutil.copy(real / "PNG" / f"r{name}_lesion.nii.png", source / "PNG")
    for name in ("NIfTI/ArterialAtlas136.nii.gz", "NIfTI/ArterialAtlas136.txt", "participants.tsv"):
        shutil.copy(real / name, source / name)
    import_soop(source, tmp_path / "cohort")
    params = IngestParams(
        sequences=("lesion",), planes=("flair",), outcome_column="mrs", require_outcome=False,
        columns=dict(SOOP_COLUMNS), ignored_columns=SOOP_IGNORED, num_workers=1,
    )  # fmt: skip
    summary = ingest(tmp_path / "cohort", tmp_path / "out", params)
    facts = pd.read_parquet(tmp_path / "out" / "facts.parquet").set_index("patient_id")
    assert summary.num_studies == len(names) and len(summary.regions) == 32
    assert facts.loc["sub-446", "volume_ml"] == pytest.approx(301.43)
    assert facts.loc["sub-446", "laterality"] == "left"
    loads = facts.filter(like="load_").sum(axis=1)
    assert (loads <= facts["volume_ml"] + 1e-6).all()
    arrays = StudyArrays.open(tmp_path / "out")
    share = decode(np.asarray(arrays.volume(arrays.patient_ids.index("sub-446"))), ("lesion",))
    assert share.sum() * GRID.voxel_ml == pytest.approx(301.43, rel=0.01)
    assert (
        arrays.planes_present.all()
        and not pd.read_parquet(tmp_path / "out" / "table.parquet")["has_table"].all()
    )


def test_the_real_isles_case_is_found_on_the_experts_side(data_dir: Path) -> None:
    (study,) = read_cohort(data_dir / "isles22").studies
    given = prepare_study(replace(study, flair=None), IngestParams())
    found = prepare_study(replace(study, lesion=None, flair=None), IngestParams())
    assert given.registration_quality > 0.9 and given.adc_unit == "1e-3 mm^2/s"
    assert given.facts.volume_ml == pytest.approx(4.184)
    assert found.facts.laterality == given.facts.laterality == "left"
    assert found.facts.territory == given.facts.territory == "mca"
    assert 0.3 < (found.facts.volume_ml or 0) / 4.184 < 1.5
