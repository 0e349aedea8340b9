"""Step `version`: give the cohort a version under DVC, on the remote, proved; and forget a patient in it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from willis.params import VersionParams
from willis.revision import code_revision
from willis.settings import Settings


class CohortVersion(BaseModel):
    """Which cohort, by content, and which code looked at it.

    Attributes:
        md5: DVC's name of the version (`HEX.dir`).
        git_revision: commit of the code; None where the code runs outside of a git checkout.
        git_dirty: True when the checkout differed from that commit.
        remote: where the version was sent.
        pushed: True; a version that could not be proved on the remote is an error, not a record.
        num_pushed: files that had to be sent this time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    md5: str
    size_bytes: int
    num_files: int
    git_revision: str | None
    git_dirty: bool
    remote: str
    pushed: bool
    num_pushed: int


class Erasure(BaseModel):
    """What `forget` removed of a patient, and what it cannot reach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patient_id: str
    num_files: int
    num_rows: int
    num_cached_objects: int
    num_remote_objects: int
    num_versions_dropped: int
    remains: tuple[str, ...]
    version: CohortVersion


def version(cohort: Path, out: Path, params: VersionParams, settings: Settings) -> CohortVersion:
    """Add the cohort to DVC, push it, prove the push, and record what was pushed.

    Args:
        cohort: folder of the cohort, inside or outside of any git repository.
        out: folder that gets `version.json`, written last and whole.
        params: longest silence of the remote.
        settings: the DVC remote and its keys.

    Raises:
        CohortError: the cohort is no folder or empty.
        StoreError: the remote does not answer or lacks a file; the next run sends what is missing.
    """
    from willis.stores.versions import push_version

    pushed = push_version(cohort, params.timeout_s, settings)
    revision, dirty = code_revision()
    record = CohortVersion(**pushed.model_dump(), git_revision=revision, git_dirty=dirty, pushed=True)
    out.mkdir(parents=True, exist_ok=True)
    part = out / ".version.json.part"
    part.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    part.replace(out / "version.json")
    return record


def forget_patient(cohort: Path, patient_id: str, params: VersionParams, settings: Settings) -> Erasure:
    """Erase one patient from the cohort and from every version of it that this machine or the remote holds.

    Older versions that held the patient can no longer be pulled; their names stay valid in records. Doing it
    twice is harmless: what an interrupted run left is removed by the next.

    Args:
        cohort: folder of the cohort.
        patient_id: `sub-LABEL`.
        params: longest silence of the remote.
        settings: the DVC remote and its keys.

    Raises:
        CohortError: the id is no BIDS label, or there is no such cohort.
        StoreError: the remote does not answer; the same call again goes on from there.
    """
    from willis.cohort.intake import erase_patient
    from willis.stores.versions import purge_patient, push_version

    erased = erase_patient(cohort, patient_id)
    pushed = push_version(cohort, params.timeout_s, settings)
    purged = purge_patient(cohort, patient_id, erased.md5, params.timeout_s, settings)
    revision, dirty = code_revision()
    return Erasure(
        patient_id=patient_id,
        num_files=erased.num_files,
        num_rows=erased.num_rows,
        num_cached_objects=purged.num_local,
        num_remote_objects=purged.num_remote,
        num_versions_dropped=purged.num_versions,
        remains=_remains(settings.dvc_remote),
        version=CohortVersion(**pushed.model_dump(), git_revision=revision, git_dirty=dirty, pushed=True),
    )


def _remains(remote: str) -> tuple[str, ...]:
    reach = ["the source that the cohort was imported from", "copies that others pulled, and backups"]
    if remote.startswith("s3://"):
        reach.append(f"older object versions, if the bucket of {remote} keeps any")
    return tuple(reach)
