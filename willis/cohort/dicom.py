"""Import of a folder of DICOM: a hospital's own studies, de-identified on the way in.

Which series is which (the first rule that fits; MR only; localizers, reformats and projections never):

- adc: `ADC` in ImageType, or a description with the word adc or apparent diffusion; never an exponential map
- dwi: a b-value of 500-2000 s/mm^2 (the nearest to 1000 is taken), from DiffusionBValue, the vendor's private
  element or a description like b1000, and one volume only: single directions are no trace
- flair: a description with flair, dark fluid or tirm, or an inversion recovery with an echo time of 60 ms or
  more; in both cases an inversion time of 1600-3500 ms, where the header has one (a T1 FLAIR has less)

An enhanced (multi-frame) object counts as the slices that its frames are, so that an object with several
b-values is no volume and is not used. Among several series of a kind the one with the most slices counts, and
of equals the last. A study stops, with the reason, when the header says that text is burned into the pixels,
when a private element holds the patient's name or id, or when anything identifying is found in what would be
kept.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from willis.cohort.bids import ClinicalTable, LeftOut, StudyFiles
from willis.cohort.deidentify import (
    Pseudonyms,
    age_of,
    burned_in,
    holds,
    identifying_words,
    kept_of_sidecar,
    leaks,
    private_surprise,
    scan_time,
    scrub_volume,
)
from willis.cohort.frames import b_values, number_of, positions, text_of
from willis.cohort.hospital_table import join_rows, read_hospital_table
from willis.cohort.intake import (
    ImportSummary,
    canonical_name,
    finish,
    new_cohort,
    with_progress,
    write_json,
)
from willis.errors import CohortError, StudyError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CONVERSION_TIMEOUT_S = 900
_NEVER = ("LOCALIZER", "MPR", "PROJECTION IMAGE", "MIP", "MINIP", "REFORMATTED", "SECONDARY")


@dataclass(frozen=True)
class _Slice:
    """One DICOM file and its header without pixels."""

    path: Path
    header: "Dataset"


def import_dicom(source: Path, out: Path, pseudonym_key: str, table: Path | None = None) -> ImportSummary:
    """Convert and de-identify a folder of DICOM into a canonical cohort.

    Patient ids become keyed hashes, dates move back by a secret span of the patient's own, ages over 89
    become 89+, and nothing else of the patient is kept. Faces are not removed from the volumes.

    Args:
        source: folder with DICOM files at any depth.
        out: the new cohort; it appears whole or not at all.
        pseudonym_key: secret of at least 16 characters; the same key gives the same pseudonyms.
        table: CSV or TSV with the hospital's `patient_id`, Willis's clinical columns and `mrs` or `mrs_90d`.

    Raises:
        SettingsError: the key is the published default or too short.
        CohortError: no DICOM file, `out` exists, or no study is usable.
        TableError: the table has columns that could carry free text, or ids twice.
    """
    names = Pseudonyms(pseudonym_key)
    clinical = read_hospital_table(table, names)
    contradicting = {item.patient_id for item in clinical.left_out}
    studies, rejected = _index(source)
    kept: list[StudyFiles] = []
    rows: dict[str, dict[str, str | None]] = {}
    with new_cohort(out) as cohort:
        for patient_id, uid in with_progress(sorted(studies), "converting studies"):
            study = StudyFiles(names.patient(patient_id), f"{names.patient(patient_id)}_{names.session(uid)}")
            if study.patient_id in contradicting:
                continue
            try:
                row = _take(study, studies[patient_id, uid], names, cohort)
            except StudyError as error:
                rejected.append(LeftOut(study.patient_id, study.study_id, str(error)))
                continue
            kept.append(study)
            first = rows.setdefault(study.patient_id, row)
            if (row["scan_time"] or "9") < (first["scan_time"] or "9"):
                rows[study.patient_id] = row
        frame = join_rows(rows, clinical)
        name = "Studies imported from DICOM, de-identified"
        return finish(cohort, "dicom", name, kept, rejected, ClinicalTable(frame, clinical.left_out))


def _index(source: Path) -> tuple[dict[tuple[str, str], list[Path]], list[LeftOut]]:
    """DICOM files by (patient id, study UID); what is no DICOM is passed over, a link never followed."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    if not source.is_dir():
        raise CohortError(f"{source} is not a folder")
    studies: dict[tuple[str, str], list[Path]] = {}
    nameless = 0
    tags = ["PatientID", "StudyInstanceUID", "SOPClassUID"]
    for path in with_progress(sorted(_regular_files(source)), "reading DICOM headers"):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except (InvalidDicomError, OSError, EOFError, ValueError):
            continue
        patient_id = str(header.get("PatientID") or "").strip()
        uid = str(header.get("StudyInstanceUID") or "").strip()
        if patient_id and uid:
            studies.setdefault((patient_id, uid), []).append(path)
        nameless += not patient_id
    if not studies:
        raise CohortError(f"{source} holds no DICOM file with a PatientID and a StudyInstanceUID")
    reason = f"{nameless} files have no PatientID; nobody can say whose they are"
    return studies, [LeftOut("unknown", "unknown", reason)] if nameless else []


def _regular_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (path for name in files if not (path := Path(place, name)).is_symlink())


def _take(study: StudyFiles, paths: list[Path], names: Pseudonyms, cohort: Path) -> dict[str, str | None]:
    """Convert one study into the cohort and return its patient's row.

    Raises:
        StudyError: the study stops; nothing of it is in the cohort.
    """
    slices = [_Slice(path, _header(path)) for path in paths]
    headers = [item.header for item in slices]
    _refuse_surprises(headers)
    words = identifying_words(headers)
    series = choose_series(slices)
    row = _row(study, headers[0], names)
    if holds(" ".join(value or "" for key, value in row.items() if key != "scan_time"), words):
        raise StudyError("the patient's row still holds something identifying after de-identification")
    with tempfile.TemporaryDirectory(prefix=".work-", dir=cohort) as folder:
        release = Path(folder, "release")
        for sequence, chosen in series.items():
            _convert(study, sequence, chosen, Path(folder, sequence), release)
        found = leaks(release, words)
        if found:
            kinds = ", ".join(sorted(Path(name).name.removeprefix(study.study_id) for name in found))
            raise StudyError(f"still holds something identifying after de-identification, in *{kinds}")
        for path in sorted(release.rglob("*")):
            if path.is_file():
                target = cohort / path.relative_to(release)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    return row


def _header(path: Path) -> "Dataset":
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True)


def _refuse_surprises(headers: list["Dataset"]) -> None:
    for header in headers:
        if burned_in(header):
            raise StudyError("BurnedInAnnotation is YES: text is painted into the pixels")
        tag = private_surprise(header)
        if tag is not None:
            raise StudyError(f"private element {tag} holds the name or an id of the patient")


def choose_series(slices: list[_Slice]) -> dict[str, list[_Slice]]:
    """The series of a study that are its dwi, adc and flair.

    Raises:
        StudyError: none is.
    """
    groups: dict[str, list[_Slice]] = {}
    for item in slices:
        groups.setdefault(str(item.header.get("SeriesInstanceUID")), []).append(item)
    found: dict[str, list[list[_Slice]]] = {}
    for group in groups.values():
        sequence, chosen = identify(group)
        if sequence:
            found.setdefault(sequence, []).append(chosen)
    if not found:
        raise StudyError(f"none of its {len(groups)} series is a DWI trace, an ADC or a FLAIR")
    return {name: max(several, key=_preference) for name, several in sorted(found.items())}


def _preference(series: list[_Slice]) -> tuple[int, int]:
    return sum(len(positions(item.header)) for item in series), int(series[0].header.get("SeriesNumber") or 0)


def identify(series: list[_Slice]) -> tuple[str, list[_Slice]]:
    """Say which sequence a series is, and which of its files make that one volume; ("", []) for none."""
    header = series[0].header
    kind = {str(part).upper() for part in header.get("ImageType") or ()}
    text = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}".lower()
    if header.get("Modality") != "MR" or kind & set(_NEVER) or "localizer" in text:
        return "", []
    exponential = any("EADC" in part or "EXPONENTIAL" in part for part in kind) or "exp" in text.split()
    if not exponential and ("ADC" in kind or re.search(r"\badc\b|apparent diff", text.replace("_", " "))):
        return ("adc", series) if _is_one_volume(series) else ("", [])
    by_value: dict[float, list[_Slice]] = {}
    for item in series:
        by_value.setdefault(b_value(item.header) or 0.0, []).append(item)
    high = [value for value in by_value if 500 <= value <= 2000]
    if high and not exponential:
        nearest = by_value[min(high, key=lambda value: abs(value - 1000))]
        return ("dwi", nearest) if _is_one_volume(nearest) else ("", [])
    return ("flair", series) if _is_flair(header, text) and _is_one_volume(series) else ("", [])


def _is_flair(header: "Dataset", text: str) -> bool:
    inversion = number_of(header, "InversionTime", "InversionTimes")
    inverted = "IR" in text_of(header, "ScanningSequence") or text_of(header, "InversionRecovery") == "YES"
    recovery = inverted and inversion > 0 and number_of(header, "EchoTime", "EffectiveEchoTime") >= 60
    named = re.search(r"flair|dark.?fluid|tirm", text) is not None
    return (named or recovery) and (inversion == 0 or 1600 <= inversion <= 3500)


def b_value(header: "Dataset") -> float | None:
    """The b-value in s/mm^2 from the standard element, a vendor's, or the series' own words."""
    for tag in ((0x0018, 0x9087), (0x0019, 0x100C), (0x2001, 0x1003), (0x0043, 0x1039)):
        if tag in header:
            value = header[tag].value
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            first = re.match(r"[\[( ]*(\d+)(\.\d+)?", text)
            if first:
                # GE adds 1e9 to the b-value of a series that holds several.
                return float(int(first[1]) % 1_000_000)
    of_frames = b_values(header)
    if of_frames:
        return min(of_frames) if len(of_frames) == 1 else None
    words = f"{header.get('SequenceName', '')} {header.get('SeriesDescription', '')}"
    named = re.search(r"(?<![a-z])b[ _=]?(\d{3,4})(?!\d)", words.lower())
    return float(named[1]) if named else None


def _is_one_volume(series: list[_Slice]) -> bool:
    places = [place for item in series for place in positions(item.header)]
    return len(set(places)) == len(places)


def _convert(study: StudyFiles, sequence: str, series: list[_Slice], work: Path, release: Path) -> None:
    """Run dcm2niix on one series and keep the scrubbed volume and what is allowed of its sidecar."""
    import json

    from dcm2niix import bin as dcm2niix

    (work / "in").mkdir(parents=True)
    (work / "out").mkdir()
    for number, item in enumerate(series):
        (work / "in" / f"{number:06d}.dcm").symlink_to(item.path.resolve())
    command = [dcm2niix, "-g", "i", "-b", "y", "-ba", "y", "-z", "n", "-w", "1", "-f", "volume"]
    try:
        done = subprocess.run(
            [*command, "-o", str(work / "out"), str(work / "in")],
            capture_output=True,
            timeout=_CONVERSION_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise StudyError(f"{sequence}: dcm2niix took more than {_CONVERSION_TIMEOUT_S} s") from None
    volumes = sorted((work / "out").glob("*.nii"))
    if len(volumes) != 1:
        raise StudyError(f"{sequence}: dcm2niix made {len(volumes)} volumes of it (exit {done.returncode})")
    target = release / canonical_name(study, sequence, Path("volume.nii.gz"))
    scrub_volume(volumes[0], target)
    sidecar = kept_of_sidecar(json.loads(volumes[0].with_suffix(".json").read_text(encoding="utf-8")))
    value = b_value(series[0].header)
    if sequence == "dwi" and value is not None:
        sidecar["DiffusionBValue"] = value
    write_json(target.with_name(target.name.removesuffix(".nii.gz") + ".json"), sidecar)
    shutil.rmtree(work)


def _row(study: StudyFiles, header: "Dataset", names: Pseudonyms) -> dict[str, str | None]:
    sex = str(header.get("PatientSex") or "").strip().upper()
    institution = str(header.get("InstitutionName") or "").strip()
    parts = [str(header.get(name) or "").strip() for name in ("Manufacturer", "ManufacturerModelName")]
    field = header.get("MagneticFieldStrength")
    scanner = " ".join([*filter(None, parts), f"{float(field):g}T" if field else ""]).strip()
    return {
        "participant_id": study.patient_id,
        "age": age_of(header),
        "sex": sex if sex in ("F", "M") else None,
        "site": names.site(institution) if institution else None,
        "scanner": re.sub(r"[^A-Za-z0-9 ._-]", "", scanner)[:64] or None,
        "scan_time": scan_time(header, names.shift(str(header.PatientID).strip())),
    }
