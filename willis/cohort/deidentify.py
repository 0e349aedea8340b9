"""De-identification of a patient's DICOM studies, and the proof that nothing identifying came through.

After DICOM PS3.15, basic application level confidentiality profile, with the options "retain longitudinal
temporal information with modified dates" (every date of a patient is shifted by the same secret span) and,
for age and sex alone, "retain patient characteristics". It keeps what is on its lists and drops everything
else: no DICOM attribute reaches the cohort unless it is named in `_NUMBERS` or `_CODES`.
"""

import gzip
import hashlib
import hmac
import json
import re
import struct
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from willis.errors import SettingsError, StudyError
from willis.settings import DEMO_PSEUDONYM_KEY

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NUMBERS = (
    "MagneticFieldStrength", "ImagingFrequency", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "EchoTrainLength", "EchoNumber", "PixelBandwidth", "SliceThickness", "SpacingBetweenSlices", "SAR",
    "EffectiveEchoSpacing", "TotalReadoutTime", "PercentPhaseFOV", "PercentSampling", "DiffusionBValue",
    "AcquisitionMatrixPE", "ReconMatrixPE", "ParallelReductionFactorInPlane", "BaseResolution",
    "ImageOrientationPatientDICOM", "SliceTiming", "PhilipsRescaleSlope", "PhilipsRescaleIntercept",
)  # fmt: skip
_CODES = (
    "Modality", "Manufacturer", "ManufacturersModelName", "MRAcquisitionType", "ScanningSequence",
    "SequenceVariant", "ScanOptions", "PatientPosition", "PhaseEncodingDirection", "PhaseEncodingAxis",
    "InPlanePhaseEncodingDirectionDICOM", "ConversionSoftware", "ConversionSoftwareVersion",
)  # fmt: skip
_CODE = re.compile(r"[A-Za-z0-9 ._+-]{1,64}")

# Fields of the NIfTI-1 header that hold text: (offset, length), of nifti1.h.
_TEXT_FIELDS = ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16))
_HEADER_BYTES, _DATA_FROM = 348, 352

_PATIENT_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_OTHER_NAMES = (
    "ReferringPhysicianName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "OperatorsName",
    "RequestingPhysician", "PhysiciansOfRecord",
)  # fmt: skip
_DATES = (
    "PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime",
    "FrameAcquisitionDateTime", "FrameReferenceDateTime",
)  # fmt: skip
_PATIENT_PHRASES = ("PatientID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers")
_PHRASES = (
    *_PATIENT_PHRASES, "AccessionNumber", "StudyID", "PatientComments", "AdditionalPatientHistory",
    "Occupation", "ImageComments", "FrameComments", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber", "StudyInstanceUID",
    "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
_TITLES = ("mr", "mrs", "ms", "dr", "med", "prof", "phd", "jr", "sr")
_WORD = re.compile(r"[^\W_]+(?:[.-][^\W_]+)*")
_TEXT_KINDS = ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT", "UN", "OB")


class Pseudonyms:
    """Names and dates under a secret key: the same key gives the same ones, another key others."""

    def __init__(self, key: str) -> None:
        """Take the key.

        Raises:
            SettingsError: the key is the published default or shorter than 16 characters.
        """
        if key == DEMO_PSEUDONYM_KEY or len(key) < 16:
            raise SettingsError(
                "WILLIS_PSEUDONYM_KEY is unset or shorter than 16 characters; whoever knows it can tell "
                "patients from their pseudonyms: set a random one (`openssl rand -hex 32`) and keep it"
            )
        self._key = key.encode()

    def patient(self, patient_id: str) -> str:
        """`sub-` and 16 hex digits for a hospital's patient id."""
        return f"sub-{self._hash('patient', patient_id)[:16]}"

    def session(self, study_uid: str) -> str:
        """`ses-` and 8 hex digits for a study."""
        return f"ses-{self._hash('study', study_uid)[:8]}"

    def site(self, institution: str) -> str:
        """A name for an institution that does not tell which."""
        return f"site-{self._hash('site', institution)[:6]}"

    def shift(self, patient_id: str) -> timedelta:
        """How far back all of a patient's dates are moved: 30 days to 5 years, to the second."""
        span = int(self._hash("dates", patient_id)[:12], 16)
        return -timedelta(days=30) - timedelta(seconds=span % (4.9 * 365 * 86400))

    def _hash(self, what: str, text: str) -> str:
        return hmac.new(self._key, f"{what}:{text.strip()}".encode(), hashlib.sha256).hexdigest()


def patient_pseudonym(patient_id: str, key: str) -> str:
    """The pseudonym of a hospital's patient id, for joining a clinical table to an import.

    Raises:
        SettingsError: the key is the published default or too short.
    """
    return Pseudonyms(key).patient(patient_id)


def identifying_words(datasets: Iterable["Dataset"]) -> frozenset[str]:
    """What in a study could tell who the patient is, in lower case.

    The words of names (a physician's only from three letters on, because initials are also sequence codes);
    dates as DICOM and as ISO write them; whole ids, addresses, comments and UIDs of three characters or more.
    Each is looked for at every depth, since enhanced objects keep texts in the groups of their frames.
    """
    words: set[str] = set()
    for dataset in datasets:
        words |= patient_words(dataset)
        words |= {word for word in _name_words(dataset, _OTHER_NAMES) if len(word) > 2}
        words |= _date_words(dataset, _DATES) | _phrases(dataset, _PHRASES)
    return frozenset(words)


def patient_words(dataset: "Dataset") -> frozenset[str]:
    """The patient's own names, birth date, ids, address and telephone, in lower case."""
    names = {word for word in _name_words(dataset, _PATIENT_NAMES) if len(word) > 1}
    born = _date_words(dataset, ("PatientBirthDate",))
    return frozenset(names | born | _phrases(dataset, _PATIENT_PHRASES))


def _name_words(dataset: "Dataset", keywords: Iterable[str]) -> set[str]:
    text = " ".join(_texts_under(dataset, keywords))
    return set(_WORD.findall(text.lower().replace("^", " ").replace("=", " "))) - set(_TITLES)


def _date_words(dataset: "Dataset", keywords: Iterable[str]) -> set[str]:
    found = (re.match(r"\d{8}", text) for text in _texts_under(dataset, keywords))
    dates = [start.group() for start in found if start]
    return {*dates, *(f"{text[:4]}-{text[4:6]}-{text[6:]}" for text in dates)}


def _phrases(dataset: "Dataset", keywords: Iterable[str]) -> set[str]:
    texts = [text.strip().lower() for keyword in keywords for text in _texts(dataset.get(keyword))]
    return {text for text in texts if len(text) >= 3}


def _texts_under(dataset: "Dataset", keywords: Iterable[str]) -> list[str]:
    """The texts of these attributes, at the top and in all sequences."""
    wanted = frozenset(keywords)
    found = (element.value for element in dataset.iterall() if element.keyword in wanted)
    return [text for value in found for text in _texts(value)]


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return [str(item) for item in value]
    return [str(value)]


def burned_in(dataset: "Dataset") -> bool:
    """True when the header says that text is painted into the pixels."""
    return str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES"


def private_surprise(dataset: "Dataset") -> str | None:
    """The tag of a private element that holds a person's name or one of the patient's own words, or None.

    Vendors write long texts and blobs there, so that only words of four letters or more tell something.
    """
    words = {word for word in patient_words(dataset) if len(word) >= 4}
    for element in dataset.iterall():
        if not element.tag.is_private or element.VR not in _TEXT_KINDS:
            continue
        value = element.value
        text = value.decode("latin-1") if isinstance(value, bytes) else " ".join(_texts(value))
        if (element.VR == "PN" and text.strip()) or holds(text, words):
            return str(element.tag)
    return None


def holds(text: str, words: Iterable[str]) -> bool:
    """True when a text has one of the words: as a whole, or inside another if long enough to tell."""
    lower = text.lower()
    near = (word for word in words if word in lower)
    return any(len(word) >= 5 or _whole(word).search(lower) for word in near)


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])")


def scrub_volume(source: Path, target: Path) -> None:
    """Copy a NIfTI-1 volume without its free text and extensions; geometry and voxels stay bit for bit.

    Raises:
        StudyError: the file is no single-file, little-endian NIfTI-1.
    """
    content = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    if content[:4] != _HEADER_BYTES.to_bytes(4, "little") or content[344:347] != b"n+1":
        raise StudyError("the converted file is no NIfTI-1 volume")
    header = bytearray(content[:_HEADER_BYTES])
    data_from = int(struct.unpack_from("<f", header, 108)[0])
    for offset, length in _TEXT_FIELDS:
        header[offset : offset + length] = bytes(length)
    struct.pack_into("<f", header, 108, float(_DATA_FROM))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as stream:
        stream.write(bytes(header) + bytes(_DATA_FROM - _HEADER_BYTES) + content[data_from:])


def kept_of_sidecar(sidecar: dict[str, Any]) -> dict[str, Any]:
    """What of dcm2niix's JSON may be kept: numbers of the physics and codes that look like codes."""
    kept: dict[str, Any] = {}
    for name in _NUMBERS:
        value = sidecar.get(name)
        if all(isinstance(item, int | float) for item in (value if isinstance(value, list) else [value])):
            kept[name] = value
    for name in _CODES:
        value = sidecar.get(name)
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) and _CODE.fullmatch(item) for item in items):
            kept[name] = value
    return kept


def age_of(dataset: "Dataset") -> str | None:
    """Age in years as BIDS writes it, `89+` from 90 on; from PatientAge or the two dates."""
    text = str(dataset.get("PatientAge", "") or "").strip()
    if re.fullmatch(r"\d{3}Y", text):
        years = int(text[:3])
    else:
        born, seen = (_date(str(dataset.get(name, "") or "")) for name in ("PatientBirthDate", "StudyDate"))
        if born is None or seen is None:
            return None
        years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return "89+" if years >= 90 else str(years)


def scan_time(dataset: "Dataset", shift: timedelta) -> str | None:
    """The shifted time of acquisition in ISO 8601, or None where the header has no date."""
    kinds = ("Acquisition", "Series", "Study")
    parts = [(dataset.get(f"{kind}Date"), dataset.get(f"{kind}Time")) for kind in kinds]
    texts = [f"{date or '':8}{time or ''}" for date, time in parts]
    texts.insert(1, str(dataset.get("AcquisitionDateTime") or ""))
    for text in texts:
        day = _date(text)
        if day is not None:
            clock = re.match(r"\d{8}(\d{2})(\d{2})(\d{2})", text)
            hour, minute, second = map(int, clock.groups()) if clock else (12, 0, 0)
            moment = day.replace(hour=hour, minute=minute, second=min(second, 59)) + shift
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return None


def _date(text: str) -> datetime | None:
    try:
        return datetime.strptime(text[:8], "%Y%m%d")
    except ValueError:
        return None


def leaks(folder: Path, words: frozenset[str]) -> list[str]:
    """Files below a folder that hold one of the words: in their path, in a JSON value, in a NIfTI header.

    Args:
        folder: what would be released: volumes and their sidecars.
        words: of `identifying_words`.

    Returns:
        Paths relative to the folder, never the words themselves.
    """
    # A header is mostly numbers, whose bytes spell short words by chance; its text fields are empty.
    long = {word for word in words if len(word) >= 4}
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inner = str(path.relative_to(folder))
        volume = path.name.endswith((".nii.gz", ".nii"))
        inside = holds(_header_text(path), long) if volume else any(holds(v, words) for v in _values(path))
        if inside or holds(inner, words):
            found.append(inner)
    return found


def _header_text(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        return stream.read(_DATA_FROM).decode("latin-1")


def _values(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return re.split(r"[\t\n]", text)
    return [str(item) for value in json.loads(text).values() for item in _texts(value)]
