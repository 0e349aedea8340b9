"""Patients on disk: find the studies of a BIDS tree, in the forms that the public stroke sets really have.

One reader for the canonical cohort and for the trees it is imported from. What it knows of names:

- roots: `sub-*` below the tree, `rawdata/`, `raw_data/`, or below one wrapping folder (`train/`, ...)
- sequences: `_dwi` (`rec-TRACE` first, `rec-ADC` is an ADC), `_adc`, `_FLAIR` in any case, at any depth
- masks: `_mask`, `_msk`, `_lesion-msk`, of `desc-lesion` (then none, then `desc-lesionAcute`), mostly in
  `derivatives/`; chronic lesions, brains and vessels are not lesions
- space: names without `space-` and those with `space-TRACE` lie on the scanner's own grid; a study is read
  from the one space that holds most of its sequences, so that a mask never meets another grid's volume
- sessions: each `ses-*` is a study of its own; without sessions a patient has one study, named as the patient

`derivatives/truth/` is never looked into: only `evaluate` may read it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from willis.errors import CohortError, TableError

if TYPE_CHECKING:
    import pandas as pd

PATIENT_ID = re.compile(r"sub-[A-Za-z0-9]+")
SESSION_ID = re.compile(r"ses-[A-Za-z0-9]+")
VOLUME_ENDINGS = (".nii.gz", ".nii")
MISSING = ("", "n/a", "N/A", "NA", "na", "nan", "NaN", "null", "None")

_RAW_FOLDERS = ("", "rawdata", "raw_data")
_NOT_FOR_READERS = ("truth", "atlas")
_OWN_GRID = ("", "TRACE", "orig", "native")
_LESION_DESCRIPTIONS = ("lesion", "", "lesionAcute")
_TRACE_WORDS = ("", "trace", "tracew", "dwi", "b1000", "isotropic")


@dataclass(frozen=True)
class StudyFiles:
    """One MRI examination: where its files are; None means that the study does not have the sequence.

    Attributes:
        patient_id: `sub-LABEL`.
        study_id: `sub-LABEL` or `sub-LABEL_ses-LABEL`, unique in the cohort.
        dwi, adc, flair, lesion: NIfTI volumes.
        planes: PNG of three FLAIR planes side by side (derived SOOP set).
        atlas: labels of the arterial territories in the study's own (standard) space.
        in_standard_space: True when every volume is in MNI space already.
        sidecars: BIDS JSON files beside the volumes, as many as there are.
    """

    patient_id: str
    study_id: str
    dwi: Path | None = None
    adc: Path | None = None
    flair: Path | None = None
    lesion: Path | None = None
    planes: Path | None = None
    atlas: Path | None = None
    in_standard_space: bool = False
    sidecars: tuple[Path, ...] = ()

    def volumes(self) -> tuple[tuple[str, Path], ...]:
        """The volumes that exist, as (sequence, path) in the order of `schema.SEQUENCES`."""
        pairs = (("dwi", self.dwi), ("adc", self.adc), ("flair", self.flair), ("lesion", self.lesion))
        return tuple((name, path) for name, path in pairs if path is not None)


@dataclass(frozen=True)
class LeftOut:
    """A patient or study that is not used, and why; the reason is a sentence for people."""

    patient_id: str
    study_id: str
    reason: str


@dataclass(frozen=True)
class ClinicalTable:
    """participants.tsv as the source has it: one row of strings per patient, None where missing."""

    frame: "pd.DataFrame"
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Cohort:
    """A cohort on disk.

    Attributes:
        root: the folder.
        studies: sorted by study_id.
        left_out: what was found and cannot be read, with reasons.
        table: participants.tsv, or None.
        source: who made the cohort: synthetic, soop, bids, dicom or unknown.
        purpose: evaluation, reader, benchmark or stream.
    """

    root: Path
    studies: tuple[StudyFiles, ...]
    left_out: tuple[LeftOut, ...]
    table: Path | None
    source: str = "unknown"
    purpose: str = "evaluation"

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients with at least one study, sorted."""
        return tuple(sorted({study.patient_id for study in self.studies}))

    def read_table(self) -> ClinicalTable:
        """Read participants.tsv; an absent file is an empty table.

        Raises:
            TableError: not UTF-8, no participant_id column, or an id that is no BIDS label.
        """
        return read_participants(self.table)


@dataclass(frozen=True)
class _Found:
    """One file whose name says what it is."""

    path: Path
    patient_id: str
    session: str
    sequence: str
    space: str
    rank: tuple[bool, int, int, str]


def read_cohort(cohort: Path) -> Cohort:
    """List the studies of a BIDS tree, canonical or not, without opening a volume.

    Args:
        cohort: the folder.

    Raises:
        CohortError: not a folder, or nothing named sub-* with an image in it.
    """
    if not cohort.is_dir():
        raise CohortError(f"{cohort} is not a folder; a cohort is a BIDS tree with sub-* folders")
    root = _unwrap(cohort)
    found, left_out = _collect(root)
    studies = _studies(root, found)
    empty = {path.name for path in _patient_folders(root)} - {study.patient_id for study in studies}
    named = {item.patient_id for item in left_out}
    left_out += [
        LeftOut(name, name, "no dwi, adc, flair, lesion or planes in the patient's folder")
        for name in sorted(empty - named)
    ]
    if not studies:
        detail = f" ({left_out[0].patient_id}: {left_out[0].reason})" if left_out else ""
        raise CohortError(f"{cohort} holds no study: no sub-*/**/*_dwi|_adc|_FLAIR|_mask.nii.gz{detail}")
    source, purpose = _description(root)
    table = root / "participants.tsv"
    return Cohort(root, studies, tuple(left_out), table if table.is_file() else None, source, purpose)


def read_participants(path: Path | None) -> ClinicalTable:
    """Read a participants.tsv as text, one row per patient.

    Equal rows of one patient count once; rows that contradict each other leave the patient out.

    Raises:
        TableError: not UTF-8, no participant_id column, or an id that is no BIDS label.
    """
    import pandas as pd

    if path is None:
        return ClinicalTable(pd.DataFrame({"participant_id": pd.Series(dtype=str)}), ())
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path} is not a tab-separated table: {error}") from None
    if "participant_id" not in frame.columns:
        raise TableError(f"{path} has columns {', '.join(frame.columns)}; it must have participant_id")
    frame["participant_id"] = [_patient_id(value, path) for value in frame["participant_id"]]
    frame = frame.mask(frame.isin(MISSING), None).drop_duplicates()
    twice = frame["participant_id"].duplicated(keep=False)
    left_out = tuple(
        LeftOut(str(name), str(name), f"{count} rows of {path.name} contradict each other; keep one")
        for name, count in frame.loc[twice, "participant_id"].value_counts(sort=False).items()
    )
    return ClinicalTable(frame[~twice].reset_index(drop=True), left_out)


def _patient_id(value: str, place: Path) -> str:
    text = value.strip()
    label = text if text.startswith("sub-") else f"sub-{text}"
    if not PATIENT_ID.fullmatch(label):
        raise TableError(f"participant_id is {value!r}; it must be sub- and letters or digits ({place})")
    return label


def _unwrap(cohort: Path) -> Path:
    """Look through wrapping folders (`train/`, `ISLES-2022/`) that hold the tree and nothing like it."""
    root = cohort
    for _ in range(3):
        if any(_patient_folders(root)):
            return root
        inner = [path for path in sorted(root.iterdir()) if path.is_dir() and any(_patient_folders(path))]
        if len(inner) == 1:
            return inner[0]
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if len(folders) != 1:
            break
        root = folders[0]
    return cohort


def _patient_folders(root: Path) -> Iterator[Path]:
    for name in _RAW_FOLDERS:
        folder = root / name
        if folder.is_dir():
            yield from (path for path in sorted(folder.glob("sub-*")) if path.is_dir())


def _collect(root: Path) -> tuple[list[_Found], list[LeftOut]]:
    found: list[_Found] = []
    left_out: list[LeftOut] = []
    for path, derived in _files(root):
        item = _recognise(path, derived)
        if item is None:
            continue
        reason = _unusable(path, root, item)
        if reason:
            left_out.append(LeftOut(item.patient_id, _study_id(item), reason))
        else:
            found.append(item)
    twice = _contradicting(found)
    return [item for item in found if _study_id(item) not in twice], left_out + list(twice.values())


def _files(root: Path) -> Iterator[tuple[Path, bool]]:
    for folder in _patient_folders(root):
        yield from ((path, False) for path in _walk(folder))
    for parent in (root / "derivatives", root / "rawdata" / "derivatives"):
        yield from ((path, True) for path in _walk(parent))


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_FOR_READERS)
        yield from (Path(place, name) for name in sorted(names))


def _recognise(path: Path, derived: bool) -> _Found | None:
    stem = _stem(path.name)
    if stem is None:
        return None
    parts = stem.split("_")
    entities = dict(part.split("-", 1) for part in parts[:-1] if "-" in part)
    patient_id, session = f"sub-{entities.get('sub', '')}", entities.get("ses", "")
    if not PATIENT_ID.fullmatch(patient_id):
        return None
    sequence = _sequence(parts[-1].lower(), entities, path.suffix == ".png")
    if sequence is None or (derived and sequence == "planes"):
        return None
    run = int(entities["run"]) if entities.get("run", "").isdigit() else 0
    description = entities.get("desc", "")
    order = _LESION_DESCRIPTIONS.index(description) if sequence == "lesion" else int("rec" not in entities)
    rank = (derived, order, -run, path.name)
    return _Found(path, patient_id, session, sequence, space_of(path), rank)


def _stem(name: str) -> str | None:
    for ending in (*VOLUME_ENDINGS, ".png"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return None


def _sequence(suffix: str, entities: dict[str, str], is_png: bool) -> str | None:
    if is_png:
        return "planes" if suffix == "flair" and entities.get("desc") == "planes" else None
    if suffix in ("mask", "msk", "lesion-msk", "lesion-mask"):
        return "lesion" if entities.get("desc", "") in _LESION_DESCRIPTIONS else None
    if suffix == "flair":
        return "flair"
    if suffix == "adc":
        return "adc"
    if suffix in ("dwi", "trace"):
        kind = (entities.get("rec") or entities.get("desc") or entities.get("acq") or "").lower()
        return "adc" if kind == "adc" else "dwi" if kind in _TRACE_WORDS else None
    return None


def _unusable(path: Path, root: Path, item: _Found) -> str | None:
    folders = path.relative_to(root).parts[:-1]
    others = [part for part in folders if part.startswith("sub-") and part != item.patient_id]
    if others:
        return f"{path.name} lies in {others[0]}/: the name and the folder are of different patients"
    if item.session and not SESSION_ID.fullmatch(f"ses-{item.session}"):
        return f"session {item.session!r} of {path.name} must be letters or digits"
    target = path.resolve()
    if not target.is_relative_to(root.resolve()):
        return f"{path.relative_to(root)} is a link to a place outside {root.name}/; copy the file in"
    if not target.is_file():
        return f"{path.relative_to(root)} is a link to nothing (with git-annex: `git annex get` fetches it)"
    return None


def _contradicting(found: list[_Found]) -> dict[str, LeftOut]:
    """Studies that have the same sequence twice under the same name: nobody can say which is right."""
    seen: dict[tuple[str, str, str], Path] = {}
    twice: dict[str, LeftOut] = {}
    for item in found:
        key = (_study_id(item), item.sequence, item.path.name)
        first = seen.setdefault(key, item.path)
        if first != item.path:
            reason = f"{item.path.name} exists twice, in {first.parent} and {item.path.parent}"
            twice[key[0]] = LeftOut(item.patient_id, key[0], reason)
    return twice


def _study_id(item: _Found) -> str:
    return f"{item.patient_id}_ses-{item.session}" if item.session else item.patient_id


def _studies(root: Path, found: list[_Found]) -> tuple[StudyFiles, ...]:
    groups: dict[str, list[_Found]] = {}
    for item in found:
        groups.setdefault(_study_id(item), []).append(item)
    atlas = next(iter(sorted((root / "derivatives" / "atlas").glob("*.nii*"))), None)
    return tuple(_study(name, groups[name], atlas) for name in sorted(groups))


def _study(study_id: str, items: list[_Found], atlas: Path | None) -> StudyFiles:
    spaces: dict[str, dict[str, Path]] = {}
    for item in sorted(items, key=lambda item: item.rank):
        if item.sequence != "planes":
            spaces.setdefault(item.space, {}).setdefault(item.sequence, item.path)
    planes = next((item.path for item in items if item.sequence == "planes"), None)
    space = max(spaces, key=lambda name: (len(spaces[name]), name == ""), default="")
    volumes = spaces.get(space, {})
    standard = space.startswith("MNI") or not volumes
    return StudyFiles(
        patient_id=items[0].patient_id,
        study_id=study_id,
        dwi=volumes.get("dwi"),
        adc=volumes.get("adc"),
        flair=volumes.get("flair"),
        lesion=volumes.get("lesion"),
        planes=planes,
        atlas=atlas if standard else None,
        in_standard_space=standard,
        sidecars=tuple(path for path in map(sidecar_of, volumes.values()) if path.is_file()),
    )


def sidecar_of(volume: Path) -> Path:
    """Where BIDS keeps a volume's JSON, whether or not it exists."""
    return volume.with_name(f"{_stem(volume.name)}.json")


def space_of(volume: Path) -> str:
    """The space that a file's name gives it; empty for the scanner's own grid."""
    named = re.search(r"_space-([A-Za-z0-9]+)_", volume.name)
    return "" if named is None or named[1] in _OWN_GRID else named[1]


def _description(root: Path) -> tuple[str, str]:
    import json

    try:
        text = (root / "dataset_description.json").read_text(encoding="utf-8")
        willis = json.loads(text).get("Willis", {})
        return str(willis.get("source", "unknown")), str(willis.get("purpose", "evaluation"))
    except (OSError, ValueError, AttributeError):
        return "unknown", "evaluation"
