"""DVC versions of a cohort on a folder and on a real S3 server that dies, hangs and comes back."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.s3 import S3Server
from willis.errors import CohortError, StoreError
from willis.params import VersionParams
from willis.settings import Settings
from willis.steps.version import CohortVersion, forget_patient, version
from willis.stores.versions import versions_folder

pytestmark = pytest.mark.integration
PARAMS = VersionParams(timeout_s=20)


def make_cohort(folder: Path, num_patients: int, volume_bytes: int = 2000) -> Path:
    """A cohort of random volumes, three tables among them; no step looks inside here."""
    for number in range(num_patients):
        name = f"sub-{number:03d}"
        (folder / name / "dwi").mkdir(parents=True)
        (folder / name / "dwi" / f"{name}_dwi.nii.gz").write_bytes(os.urandom(volume_bytes))
        (folder / name / "dwi" / f"{name}_dwi.json").write_text('{"EchoTime": 0.09}\n')
    rows = "".join(f"sub-{number:03d}\t{50 + number}\n" for number in range(num_patients))
    (folder / "participants.tsv").write_text("participant_id\tage\n" + rows)
    return folder


def s3_settings(server: S3Server, prefix: str) -> Settings:
    return Settings.model_validate(
        {
            "dvc_remote": f"s3://{server.bucket}/{prefix}",
            "s3_endpoint_url": server.endpoint_url,
            "s3_access_key": server.access_key,
            "s3_secret_key": server.secret_key,
        }
    )


def folder_settings(path: Path) -> Settings:
    return Settings(dvc_remote=str(path))


def dvc(folder: Path, *words: str) -> str:
    """The real `dvc` command, as a person would type it in that folder."""
    command = [sys.executable, "-m", "dvc", *words]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_version_is_what_dvc_add_makes_and_dvc_pull_brings_back(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "here" / "cohort", 5)
    before = contents(cohort)
    record = version(cohort, tmp_path / "out", PARAMS, folder_settings(tmp_path / "remote"))
    other = tmp_path / "elsewhere"
    shutil.copytree(cohort, other / "cohort")
    dvc(other, "init", "--no-scm")
    dvc(other, "add", "cohort")
    assert f"md5: {record.md5}\n" in (other / "cohort.dvc").read_text()
    state = versions_folder(cohort)
    shutil.rmtree(state / ".dvc" / "cache")
    dvc(state, "pull")
    assert contents(state / "cohort") == before == contents(cohort)


def test_the_record_says_what_was_pushed_and_by_which_code(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", 3, volume_bytes=100)
    record = version(cohort, tmp_path / "out", PARAMS, folder_settings(tmp_path / "remote"))
    sizes = [len(content) for content in contents(cohort).values()]
    assert (record.num_files, record.size_bytes, record.pushed) == (7, sum(sizes), True)
    assert record.git_revision is None or len(record.git_revision) == 40
    written = CohortVersion.model_validate_json((tmp_path / "out" / "version.json").read_text())
    assert written == record


def test_volumes_are_not_stored_twice_and_tables_stay_editable(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", 2)
    version(cohort, tmp_path / "out", PARAMS, folder_settings(tmp_path / "remote"))
    volume, table = cohort / "sub-000/dwi/sub-000_dwi.nii.gz", cohort / "participants.tsv"
    cached = [path.stat().st_ino for path in (versions_folder(cohort) / ".dvc/cache").rglob("*")]
    assert volume.stat().st_ino in cached and volume.stat().st_mode & 0o222 == 0
    assert table.stat().st_ino not in cached and table.stat().st_mode & 0o200


def test_a_second_run_sends_nothing_and_a_changed_table_sends_itself(tmp_path: Path, s3: S3Server) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 4), s3_settings(s3, "second-run")
    first = version(cohort, tmp_path / "out", PARAMS, settings)
    # Four volumes, one JSON (all four are equal), the table, the list of files.
    assert first.num_pushed == len(s3.keys("second-run/")) == 7
    assert version(cohort, tmp_path / "out", PARAMS, settings).num_pushed == 0
    with (cohort / "participants.tsv").open("a") as table:
        table.write("sub-004\t61\n")
    changed = version(cohort, tmp_path / "out", PARAMS, settings)
    assert changed.num_pushed == 2 and changed.md5 != first.md5


def test_keys_are_written_to_no_file(tmp_path: Path, s3: S3Server) -> None:
    cohort = make_cohort(tmp_path / "cohort", 1)
    version(cohort, tmp_path / "out", PARAMS, s3_settings(s3, "no-keys"))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert s3.secret_key.encode() not in written


def test_a_file_that_vanished_from_the_remote_is_seen_and_sent_again(tmp_path: Path, s3: S3Server) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 3), s3_settings(s3, "vanished")
    version(cohort, tmp_path / "out", PARAMS, settings)
    keys = [key for key in s3.keys("vanished/") if not key.endswith(".dir")]
    s3.client().delete_object(Bucket=s3.bucket, Key=keys[0])
    s3.client().put_object(Bucket=s3.bucket, Key=keys[1], Body=b"cut off")
    assert version(cohort, tmp_path / "out", PARAMS, settings).num_pushed == 2


def test_a_remote_that_dies_in_the_middle_of_a_push_gets_the_rest_later(
    tmp_path: Path, mortal_s3: S3Server
) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 240, 150_000), s3_settings(mortal_s3, "dies")
    threading.Thread(target=_kill_when_some_arrived, args=(mortal_s3, 40)).start()
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"sending \(\d+ of 242 files\), DVC remote s3://willis/dies"):
        version(cohort, tmp_path / "out", PARAMS, settings)
    assert time.monotonic() - started < 90
    assert not (tmp_path / "out" / "version.json").exists()
    mortal_s3.start()
    arrived = mortal_s3.keys("dies/")
    assert 0 < len(arrived) < 243 and not any(key.endswith(".dir") for key in arrived)
    record = version(cohort, tmp_path / "out", PARAMS, settings)
    whole = sum(size > 0 for size in arrived.values())
    assert 243 - len(arrived) <= record.num_pushed <= 243 - whole + 40
    assert len(mortal_s3.keys("dies/")) == 243


def _kill_when_some_arrived(server: S3Server, enough: int) -> None:
    while len(server.keys("dies/")) < enough:
        time.sleep(0.02)
    server.kill()


def test_a_remote_that_hangs_is_given_up_after_the_timeout(tmp_path: Path, mortal_s3: S3Server) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 2), s3_settings(mortal_s3, "hangs")
    mortal_s3.pause()
    with pytest.raises(StoreError, match=r"said nothing for 6 s .*version.timeout_s.*same command again"):
        version(cohort, tmp_path / "out", VersionParams(timeout_s=6), settings)
    assert not processes_of(os.getpid())


def processes_of(asker: int) -> list[int]:
    """DVC processes that work for a process."""
    wanted = f"willis.stores.versions\0{asker}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().endswith(wanted):
                found.append(int(path.parent.name))
    return found


def test_a_killed_run_leaves_no_process_behind_and_the_next_goes_on(
    tmp_path: Path, mortal_s3: S3Server
) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 2), s3_settings(mortal_s3, "killed")
    mortal_s3.pause()
    code = (
        "import sys; from pathlib import Path; from willis.settings import Settings\n"
        "from willis.params import VersionParams; from willis.steps.version import version\n"
        "version(Path(sys.argv[1]), Path(sys.argv[2]), VersionParams(), Settings())"
    )
    secrets = {name: value.get_secret_value() for name in ("s3_access_key", "s3_secret_key")
               if (value := getattr(settings, name))}  # fmt: skip
    plain = {"dvc_remote": settings.dvc_remote, "s3_endpoint_url": str(settings.s3_endpoint_url)}
    environment = os.environ | {f"WILLIS_{name.upper()}": value for name, value in (plain | secrets).items()}
    run = subprocess.Popen([sys.executable, "-c", code, str(cohort), str(tmp_path / "out")], env=environment)
    wait_until(lambda: bool(processes_of(run.pid)) and (versions_folder(cohort) / "cohort.dvc").exists())
    run.kill()
    run.wait()
    wait_until(lambda: not processes_of(run.pid))
    mortal_s3.resume()
    assert version(cohort, tmp_path / "out", PARAMS, settings).num_pushed == 5


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


def test_a_wrong_key_is_refused_with_the_servers_word(tmp_path: Path, s3: S3Server) -> None:
    right = s3_settings(s3, "wrong-key").model_dump()
    wrong = Settings.model_validate(right | {"s3_access_key": "who", "s3_secret_key": "no"})
    with pytest.raises(StoreError, match="s3://willis/wrong-key, failed: (Permission|Client)Error"):
        version(make_cohort(tmp_path / "cohort", 1), tmp_path / "out", PARAMS, wrong)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="remote"):
        version(make_cohort(tmp_path / "cohort", 1), tmp_path / "out", PARAMS, folder_settings(remote))
    assert not (tmp_path / "out" / "version.json").exists()


def test_an_unknown_kind_of_remote_and_an_empty_cohort_are_refused(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", 1)
    with pytest.raises(StoreError, match="must be a folder or s3://bucket/prefix"):
        version(cohort, tmp_path / "out", PARAMS, Settings(dvc_remote="ftp://somewhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no folder with files"):
        version(tmp_path / "empty", tmp_path / "out", PARAMS, folder_settings(tmp_path / "remote"))


def test_a_cohort_in_an_ignored_folder_of_a_git_checkout_gets_its_version(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    cohort = make_cohort(tmp_path / "build" / "cohort", 1)
    assert version(cohort, tmp_path / "out", PARAMS, folder_settings(tmp_path / "remote")).num_files == 3
    status = subprocess.run(["git", "-C", str(tmp_path), "status", "--porcelain"], capture_output=True)
    assert b"build" not in status.stdout


def test_a_forgotten_patient_is_in_no_version_here_or_on_the_remote(tmp_path: Path, s3: S3Server) -> None:
    cohort, settings = make_cohort(tmp_path / "cohort", 3), s3_settings(s3, "forget")
    secret = (cohort / "sub-001/dwi/sub-001_dwi.nii.gz").read_bytes()
    first = version(cohort, tmp_path / "out", PARAMS, settings)
    erasure = forget_patient(cohort, "sub-001", PARAMS, settings)
    # The JSON file stays in the stores: the same bytes belong to the other patients.
    assert (erasure.num_files, erasure.num_rows, erasure.num_versions_dropped) == (2, 1, 1)
    assert erasure.num_remote_objects == erasure.num_cached_objects == 3
    assert erasure.version.md5 != first.md5 and erasure.version.num_files == 5
    bodies = [s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read() for key in s3.keys("forget/")]
    here = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db"]
    for body in [*bodies, *here]:
        assert body != secret
        assert b"sub-001" not in body
    assert any("source" in place for place in erasure.remains)


def test_forgetting_spares_another_cohorts_patient_of_the_same_name(tmp_path: Path) -> None:
    settings = folder_settings(tmp_path / "remote")
    ours, theirs = make_cohort(tmp_path / "a" / "cohort", 2), make_cohort(tmp_path / "b" / "cohort", 2)
    for cohort in (ours, theirs):
        version(cohort, tmp_path / "out", PARAMS, settings)
    forget_patient(ours, "sub-001", PARAMS, settings)
    again = version(theirs, tmp_path / "out", PARAMS, settings)
    assert again.num_pushed == 0
    listed = json.loads((tmp_path / "remote/files/md5" / again.md5[:2] / again.md5[2:]).read_text())
    assert any("sub-001" in entry["relpath"] for entry in listed)


def test_an_interrupted_forgetting_is_finished_by_the_next(tmp_path: Path) -> None:
    from willis.cohort.intake import erase_patient

    settings = folder_settings(tmp_path / "remote")
    cohort = make_cohort(tmp_path / "cohort", 2)
    version(cohort, tmp_path / "out", PARAMS, settings)
    erase_patient(cohort, "sub-001")
    assert forget_patient(cohort, "sub-001", PARAMS, settings).num_remote_objects == 3
    assert forget_patient(cohort, "sub-001", PARAMS, settings).num_remote_objects == 0
