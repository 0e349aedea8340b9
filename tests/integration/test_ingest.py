import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.phantoms import GRID, SPACE, phantom, write, write_cohort
from willis.cohort.bids import read_cohort
from willis.cohort.soop import import_soop
from willis.cohort.table import SOOP_COLUMNS, SOOP_IGNORED
from willis.errors import CohortError, StepError
from willis.imaging.prepare import prepare_study
from willis.imaging.shards import StudyArrays, decode
from willis.params import IngestParams
from willis.steps.ingest import IngestSummary, ingest

PARAMS = IngestParams(num_workers=1, studies_per_shard=3)


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


def test_broken_studies_are_listed_with_reasons_and_left_out(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", 6)
    dwi_of(cohort, "sub-02").write_bytes(dwi_of(cohort, "sub-02").read_bytes()[:-300])
    dwi_of(cohort, "sub-04").write_text("not a NIfTI file")
    write(dwi_of(cohort, "sub-05"), phantom().dwi[:-1], GRID.affine)
    summary = ingest(cohort, tmp_path / "out", PARAMS)
    rejected = pd.read_parquet(tmp_path / "out" / "rejected.parquet").set_index("study_id")["reason"]
    assert summary.num_studies == 3 and summary.num_rejected == 3
    assert "ends early" in rejected["sub-02"]
    assert "starts with its header size" in rejected["sub-04"]
    assert "must lie on one grid" in rejected["sub-05"]
    assert StudyArrays.open(tmp_path / "out").patient_ids == ("sub-01", "sub-03", "sub-06")


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


def test_no_outcome_and_one_class_only_are_refused_unless_not_required(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str)
    table.assign(mrs_90d="1").to_csv(cohort / "participants.tsv", sep="\t", index=False)
    with pytest.raises(CohortError, match="all 4 patients with an outcome have mrs_90d < 3"):
        ingest(cohort, tmp_path / "out", PARAMS)
    (cohort / "participants.tsv").unlink()
    with pytest.raises(CohortError, match="none of 4 patients has mrs_90d"):
        ingest(cohort, tmp_path / "out", PARAMS)
    summary = ingest(cohort, tmp_path / "out", PARAMS.model_copy(update={"require_outcome": False}))
    assert summary.num_studies == 4 and summary.num_with_table == 0


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
    with pytest.raises(StepError, match="holds files that ingest did not write"):
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
