"""What every import shares: a cohort built aside and moved into place whole; and erasure from a cohort."""

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict

from willis.cohort.bids import (
    PATIENT_ID,
    VOLUME_ENDINGS,
    ClinicalTable,
    LeftOut,
    StudyFiles,
    sidecar_of,
    space_of,
)
from willis.errors import CohortError, StoreError
from willis.outputs import NO_SPACE

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class ImportSummary(BaseModel):
    """What an import brought in and what it left out.

    Attributes:
        num_patients: patients with at least one study.
        num_studies: studies.
        num_rows: rows of the clinical table.
        rejected: what was found and not taken, with reasons; also in the cohort's rejected.tsv.
        rows_without_images: patients of the table that have no study.
        patients_without_row: patients with a study whose clinical table is missing, which is normal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    num_patients: int
    num_studies: int
    num_rows: int
    rejected: tuple[LeftOut, ...]
    rows_without_images: tuple[str, ...]
    patients_without_row: tuple[str, ...]


@dataclass(frozen=True)
class Erased:
    """What was removed of one patient; md5 is of the removed files."""

    num_files: int
    num_rows: int
    md5: tuple[str, ...]


@contextmanager
def new_cohort(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` if the body ends well, and vanishes otherwise.

    Raises:
        CohortError: `out` exists and is not empty.
        StoreError: the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CohortError(f"{out} exists; remove it or import into another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.importing-*"):
        if not _is_running(leftover.suffix.removeprefix(".importing-")):
            shutil.rmtree(leftover)
    aside = out.parent / f".{out.name}.importing-{os.getpid()}"
    aside.mkdir()
    try:
        yield aside
        with suppress(FileNotFoundError):
            out.rmdir()
        aside.rename(out)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free_mb = shutil.disk_usage(out.parent).free // 2**20
        raise StoreError(
            f"no space left for {out} ({free_mb} MB free before clearing up); nothing of it was kept: "
            "free some space or give another --out"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_running(pid: str) -> bool:
    return pid.isdigit() and Path("/proc", pid).exists()


def place(source: Path, target: Path) -> None:
    """Bring a file into the cohort unchanged: a hard link, or a copy where the disk is another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def place_study(study: StudyFiles, cohort: Path) -> None:
    """Bring a study in under its canonical names; JSON sidecars are copied, so that they stay editable."""
    for sequence, source in study.volumes():
        target = cohort / canonical_name(study, sequence, source)
        place(source, target)
        if sidecar_of(source) in study.sidecars:
            shutil.copyfile(sidecar_of(source), sidecar_of(target))
    if study.planes is not None:
        place(study.planes, cohort / canonical_name(study, "planes", study.planes))


def canonical_name(study: StudyFiles, sequence: str, source: Path) -> Path:
    """Where a file of a study stands in a canonical cohort, relative to its root."""
    ending = next((end for end in (*VOLUME_ENDINGS, ".png") if source.name.endswith(end)), "")
    session = study.study_id.removeprefix(study.patient_id).removeprefix("_")
    space = space_of(source)
    stem = f"{study.study_id}_space-{space}" if space else study.study_id
    folder = Path(study.patient_id, session) if session else Path(study.patient_id)
    if sequence == "lesion":
        return Path("derivatives", "lesion_masks") / folder / f"{stem}_desc-lesion_mask{ending}"
    if sequence == "planes":
        return folder / "anat" / f"{stem}_desc-planes_FLAIR{ending}"
    if sequence == "flair":
        return folder / "anat" / f"{stem}_FLAIR{ending}"
    return folder / "dwi" / f"{stem}_{sequence}{ending}"


def with_progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Walk through items behind a progress bar, where there is a screen to see it."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, description=what, console=console, transient=True, disable=hidden)


def same_bytes(studies: Iterable[StudyFiles]) -> dict[str, LeftOut]:
    """Studies whose image is, byte for byte, an image of an earlier patient: one patient under two names.

    Masks do not count: two patients without a lesion have the same one.

    Returns:
        study_id -> why it is left out.
    """
    by_size: dict[int, list[tuple[StudyFiles, Path]]] = {}
    for study in studies:
        for path in (study.dwi, study.adc, study.flair, study.planes):
            if path is not None:
                by_size.setdefault(path.stat().st_size, []).append((study, path))
    twins: dict[str, LeftOut] = {}
    for group in by_size.values():
        if len({study.patient_id for study, _ in group}) > 1:
            _compare(group, twins)
    return twins


def _compare(group: list[tuple[StudyFiles, Path]], twins: dict[str, LeftOut]) -> None:
    first: dict[str, tuple[StudyFiles, Path]] = {}
    for study, path in group:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        other, file = first.setdefault(digest, (study, path))
        if other.patient_id != study.patient_id:
            reason = f"{path.name} is {file.name} of {other.patient_id} byte for byte: one patient, two names"
            twins[study.study_id] = LeftOut(study.patient_id, study.study_id, reason)


def finish(
    cohort: Path,
    source: str,
    name: str,
    studies: Sequence[StudyFiles],
    rejected: Sequence[LeftOut],
    table: ClinicalTable,
) -> ImportSummary:
    """Write the table, the description and the list of what was left out.

    Raises:
        CohortError: no study is left.
    """
    rejected = sorted({*rejected, *table.left_out}, key=lambda item: (item.study_id, item.reason))
    if not studies:
        first = f"; the first reason is: {rejected[0].reason}" if rejected else ""
        raise CohortError(f"no study could be imported, {len(rejected)} were rejected{first}")
    write_table(cohort / "participants.tsv", table.frame)
    description = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Willis": {"source": source, "purpose": "evaluation"},
    }
    write_json(cohort / "dataset_description.json", description)
    if rejected:
        lines = [("patient_id", "study_id", "reason")]
        lines += [(item.patient_id, item.study_id, item.reason) for item in rejected]
        text = StringIO()
        csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
        (cohort / "rejected.tsv").write_text(text.getvalue(), encoding="utf-8")
        (cohort / ".bidsignore").write_text("rejected.tsv\n", encoding="utf-8")
    with_images, with_row = {study.patient_id for study in studies}, set(table.frame["participant_id"])
    return ImportSummary(
        source=source,
        num_patients=len(with_images),
        num_studies=len(studies),
        num_rows=len(table.frame),
        rejected=tuple(rejected),
        rows_without_images=tuple(sorted(with_row - with_images)),
        patients_without_row=tuple(sorted(with_images - with_row)),
    )


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a participants.tsv: tab-separated, `n/a` where a value is missing."""
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a", lineterminator="\n")


def separator_of(path: Path) -> str:
    """Tab, semicolon or comma, whichever the first line has most of; pandas would try spaces too."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline()
    return max(",;\t", key=first.count)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file for people and programs: indented, sorted, ends with a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def erase_patient(cohort: Path, patient_id: str) -> Erased:
    """Remove a patient's files and rows from a cohort; a patient who is not there is no error.

    Tables are replaced, not edited in place: DVC's cache may share the bytes of the old ones.

    Raises:
        CohortError: the id is no BIDS label, or the cohort is no folder.
    """
    if not PATIENT_ID.fullmatch(patient_id):
        raise CohortError(f"patient_id is {patient_id!r}; it must be sub- and letters or digits")
    if not cohort.is_dir():
        raise CohortError(f"{cohort} is not a folder")
    folders = [path for path in cohort.rglob(patient_id) if path.is_dir() and not path.is_symlink()]
    files = [path for path in cohort.rglob(f"{patient_id}_*") if path.is_file()]
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    doomed = sorted({*files, *inside})
    digests = tuple(sorted({hashlib.md5(path.read_bytes()).hexdigest() for path in doomed}))
    num_rows = sum(_erase_rows(path, patient_id) for path in sorted(cohort.rglob("*.tsv")))
    num_rows += sum(_erase_records(path, patient_id) for path in sorted(cohort.rglob("*.parquet")))
    for path in doomed:
        path.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return Erased(len(doomed), num_rows, digests)


def _erase_rows(path: Path, patient_id: str) -> int:
    """Drop the rows of a TSV that name the patient in any cell, whole words only."""
    named = re.compile(rf"(?<![A-Za-z0-9-]){re.escape(patient_id)}(?![A-Za-z0-9])")
    bare = patient_id.removeprefix("sub-")
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    kept = [line for line in lines if not named.search(line) and line.split("\t")[0].strip() != bare]
    if len(kept) < len(lines):
        _replace(path, lambda part: part.write_text("".join(kept), encoding="utf-8"))
    return len(lines) - len(kept)


def _erase_records(path: Path, patient_id: str) -> int:
    import pandas as pd

    frame = pd.read_parquet(path)
    if "patient_id" not in frame.columns:
        return 0
    kept = frame[frame["patient_id"] != patient_id]
    if len(kept) < len(frame):
        _replace(path, lambda part: kept.reset_index(drop=True).to_parquet(part))
    return len(frame) - len(kept)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part")
    write(part)
    part.replace(path)
