"""A bundle: one trained model with everything that using, judging and tracing it needs.

    bundle.json        this manifest: files with digests, contract in brief, lineage, licence, intended use
    model.safetensors  weights (never a pickle: loading a bundle runs nobody's code)
    contract.json      what the network expects: sequences, shape, columns, facts, scaling
    preprocessing.json how volumes became the network's input, and facts were measured
    calibration.json   temperature, threshold, conformal quantiles
    evaluation.json    what was measured, on whom
    patients.json      pseudonyms of the patients in each split: what the model has seen
    reference.parquet  pseudonymous validation rows that drift is measured against
    model_card.md      for people

The version is derived from the content: equal files give an equal version, on every machine.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from willis.errors import BundleError
from willis.models.preprocessing import PREPROCESSING, Preprocessing

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "bundle.json"
REQUIRED = (
    "model.safetensors",
    "contract.json",
    PREPROCESSING,
    "calibration.json",
    "evaluation.json",
    "patients.json",
    "reference.parquet",
    "model_card.md",
)
SAFE_SUFFIXES = (".safetensors", ".json", ".parquet", ".md", ".png")
LICENCE = "Apache-2.0"
Outcome = Literal["mrs_90d", "mrs"]
_WHEN = {
    "mrs_90d": "at 90 days",
    "mrs": "as the source of the cohort gives it, at a time not known to be 90 days,",
}
_VOLUMES = {"dwi": "DWI", "adc": "ADC", "flair": "FLAIR", "lesion": "a lesion mask"}
NOTICE = "For research only. Not a medical device; not for diagnosis or treatment of any patient."
_SAFETENSORS_HEADER_LIMIT = 100_000_000
R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """A frozen, closed record inside a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(Record):
    """One file of the bundle and the digest that its content must have."""

    name: str
    sha256: str
    size_bytes: int


class Lineage(Record):
    """Where the model came from; None where a step did not record it."""

    cohort_md5: str | None = None
    cohort_size_bytes: int | None = None
    cohort_num_files: int | None = None
    cohort_remote: str | None = None
    git_revision: str | None = None
    git_dirty: bool | None = None
    report_writer: str | None = None
    report_model: str | None = None
    report_prompt_hashes: tuple[str, ...] = ()
    feature_service: str | None = None
    features_from: datetime | None = None
    features_until: datetime | None = None
    training: str = "{}"
    seed: int | None = None
    willis_version: str = ""


class Amendment(Record):
    """A patient was erased from the bundle after it was made; the version stays, the file changed."""

    amended_at: datetime
    name: str
    sha256_before: str
    sha256_after: str
    reason: str


class Manifest(Record):
    """bundle.json."""

    format: Literal[1] = 1
    version: str
    created_at: datetime
    files: tuple[BundleFile, ...]
    sequences: tuple[str, ...]
    feature_service: str | None
    lineage: Lineage
    licence: str = LICENCE
    outcome: Outcome
    intended_use: str
    notice: str = NOTICE
    amendments: tuple[Amendment, ...] = ()


class SeenPatients(Record):
    """patients.json: who was in which split, as keyed hashes.

    `key_check` tells whether two lists were made with the same key, without revealing it; lists made with
    different keys cannot be compared.
    """

    key_check: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]

    def learned_from(self) -> frozenset[str]:
        """Pseudonyms of everyone whom training, early stopping, temperature or threshold have seen."""
        return frozenset(self.train) | frozenset(self.validation) | frozenset(self.calibration)


@dataclass(frozen=True)
class Bundle:
    """A bundle in a local folder whose every file has been checked."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Check a bundle folder and open it.

        Raises:
            BundleError: a file is missing, changed, not listed or of a kind that may run code.
        """
        manifest = read_manifest(folder / MANIFEST)
        _check_names(folder, manifest)
        for file in manifest.files:
            _check_digest(folder / file.name, file)
        _check_version(manifest)
        _check_safetensors(folder / "model.safetensors")
        return cls(folder, manifest)

    @property
    def version(self) -> str:
        """The content-derived version: 16 hexadecimal digits."""
        return self.manifest.version

    def reference(self) -> "pd.DataFrame":
        """Return the validation rows that drift is measured against."""
        import pandas as pd

        return pd.read_parquet(self.folder / "reference.parquet")

    def preprocessing(self) -> Preprocessing:
        """Return how studies must be prepared for this model.

        Raises:
            BundleError: preprocessing.json breaks its schema.
        """
        return read_record(self.folder / PREPROCESSING, Preprocessing)

    def patients(self) -> SeenPatients:
        """Return who was in which split.

        Raises:
            BundleError: patients.json breaks its schema.
        """
        return read_record(self.folder / "patients.json", SeenPatients)


def write_bundle(
    folder: Path,
    sources: Mapping[str, Path],
    lineage: Lineage,
    sequences: tuple[str, ...],
    created_at: datetime,
    outcome: Outcome,
) -> Bundle:
    """Copy a bundle's files into a new folder, write its manifest and load it back.

    Args:
        folder: must not exist; appears whole or not at all.
        sources: file name in the bundle -> where it is now; every name of REQUIRED at least.
        lineage: what the manifest says of the model's origin.
        sequences: the MRI sequences that the network was configured for.
        created_at: recorded, and no part of the version.
        outcome: what was learned: the Rankin scale at 90 days, or at the time of the source.

    Raises:
        BundleError: the folder exists, or the result would not load.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists already; a bundle is written into a new folder")
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name, source in sources.items():
        if not source.is_file():
            raise BundleError(f"{source} does not exist; the bundle needs it as {name}")
        shutil.copyfile(source, staged / name)
    files = tuple(_describe(staged / name) for name in sorted(sources))
    manifest = Manifest(
        version=version_of({file.name: file.sha256 for file in files}),
        created_at=created_at,
        files=files,
        sequences=sequences,
        feature_service=lineage.feature_service,
        lineage=lineage,
        outcome=outcome,
        intended_use=intended_use(
            outcome, sequences, read_record(staged / PREPROCESSING, Preprocessing).planes
        ),
    )
    (staged / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    Bundle.load(staged)
    staged.replace(folder)
    return Bundle(folder, manifest)


def intended_use(outcome: Outcome, sequences: Sequence[str], planes: Sequence[str]) -> str:
    """Say what a model may be used for, claiming no more than it learned from."""
    volumes = [*(_VOLUMES[name] for name in sequences), *(f"{_VOLUMES[name]} planes" for name in planes)]
    return (
        f"Research on outcome after ischemic stroke: probability of poor outcome (mRS 3-6) {_WHEN[outcome]} "
        f"for adults with MRI-proven ischemic stroke, from {', '.join(volumes)}, the table at admission and "
        "the MRI report. Out of scope: diagnosis, decisions on treatment or on its withdrawal, children, "
        "haemorrhagic stroke."
    )


def version_of(digests: Mapping[str, str]) -> str:
    """Return the version of files with these digests: 16 hex digits of sha256 over sorted (name, sha256)."""
    text = json.dumps(sorted(digests.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(path: Path) -> Manifest:
    """Read bundle.json.

    Raises:
        BundleError: it is missing or breaks its schema.
    """
    return read_record(path, Manifest)


def read_record(path: Path, kind: type[R]) -> R:
    """Read one JSON record of a bundle.

    Raises:
        BundleError: it is missing or breaks its schema; names file, field and rule.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist; is {path.parent} a bundle?") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {place or 'content'}: {first['msg']}") from None


def original_digests(manifest: Manifest) -> dict[str, str]:
    """Return the digests from which the version was derived, before any amendment."""
    digests = {file.name: file.sha256 for file in manifest.files}
    for amendment in reversed(manifest.amendments):
        if digests.get(amendment.name) != amendment.sha256_after:
            raise BundleError(
                f"amendment of {amendment.name} at {amendment.amended_at} does not lead to the file's digest"
            )
        digests[amendment.name] = amendment.sha256_before
    return digests


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path) -> BundleFile:
    return BundleFile(name=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _check_names(folder: Path, manifest: Manifest) -> None:
    names = [file.name for file in manifest.files]
    for name in names:
        # A name with a slash could make a download write outside its folder.
        if Path(name).name != name or Path(name).suffix not in SAFE_SUFFIXES:
            raise BundleError(
                f"{folder}: {name!r} is refused; plain names with {', '.join(SAFE_SUFFIXES)} only"
            )
    missing = set(REQUIRED) - set(names)
    if missing:
        raise BundleError(
            f"{folder}: {MANIFEST} does not list {', '.join(sorted(missing))}; promote again to make it whole"
        )
    unlisted = {path.name for path in folder.iterdir()} - {*names, MANIFEST}
    if unlisted or len(set(names)) < len(names):
        what = ", ".join(sorted(unlisted)) or "a name twice"
        raise BundleError(f"{folder} holds {what}, which {MANIFEST} does not allow; fetch the bundle again")


def _check_digest(path: Path, file: BundleFile) -> None:
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{path} is missing; fetch the bundle again")
    found = sha256_of(path)
    if found != file.sha256:
        raise BundleError(
            f"{path} has sha256 {found[:16]}..., {MANIFEST} says {file.sha256[:16]}...; "
            "fetch the bundle again"
        )


def _check_version(manifest: Manifest) -> None:
    derived = version_of(original_digests(manifest))
    if derived != manifest.version:
        raise BundleError(f"{MANIFEST} says version {manifest.version}, its files derive {derived}")


def _check_safetensors(path: Path) -> None:
    """The header must be a JSON table of tensors: what safetensors reads, and nothing that it would not."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 0 < length < _SAFETENSORS_HEADER_LIMIT else b""
    try:
        tensors = json.loads(header)
    except ValueError:
        tensors = None
    if not isinstance(tensors, dict) or not tensors:
        raise BundleError(f"{path} is no safetensors file; weights of any other kind are refused")
