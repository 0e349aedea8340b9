"""The bundle registry: bundles under their content-derived versions, and aliases that point at one of them.

    bundles/VERSION/FILE          written once; bundle.json last, so that half a bundle is no bundle
    aliases/ALIAS.json            {"version", "previous", "moved_at", "move_id"}: moved by compare and swap

It lives in whatever `open_store` opens: a folder, or S3.
"""

import hashlib
import io
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from willis.errors import BundleError, InputError, StoreError
from willis.models.bundle import (
    MANIFEST,
    Amendment,
    Bundle,
    BundleFile,
    Manifest,
    SeenPatients,
    version_of,
)
from willis.stores.objects import ObjectStore, open_store

if TYPE_CHECKING:
    from willis.settings import Settings


class AliasRecord(BaseModel):
    """What an alias points at. `move_id` tells two moves to the same version apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    previous: str | None
    moved_at: AwareDatetime
    move_id: str


@dataclass(frozen=True)
class Alias:
    """An alias as it stood when it was read; `tag` is None when it did not exist yet."""

    name: str
    version: str | None = None
    previous: str | None = None
    tag: str | None = None


class Registry:
    """Publish, fetch, point.

    Args:
        store: where bundles and aliases live.
        cache: local folder for fetched bundles; may be shared by processes.
    """

    def __init__(self, store: ObjectStore, cache: Path) -> None:
        self.store, self.cache = store, cache

    @classmethod
    def open(cls, settings: "Settings") -> "Registry":
        """Open the registry of the settings."""
        return cls(open_store(settings.registry, settings), settings.bundle_cache)

    def publish(self, bundle: Bundle) -> None:
        """Write a bundle under its version; writing it again changes nothing.

        Raises:
            StoreError: the store does not answer; without bundle.json the bundle does not exist yet.
        """
        if self.store.read(_key(bundle.version, MANIFEST)) is not None:
            return
        for file in bundle.manifest.files:
            self.store.put(_key(bundle.version, file.name), (bundle.folder / file.name).read_bytes())
        manifest = (bundle.folder / MANIFEST).read_bytes()
        self.store.put_if_absent(_key(bundle.version, MANIFEST), manifest)

    def versions(self) -> tuple[str, ...]:
        """Return every complete bundle's version, sorted."""
        keys = (key.split("/") for key in self.store.list("bundles"))
        return tuple(sorted(key[1] for key in keys if len(key) == 3 and key[2] == MANIFEST))

    def fetch(self, version_or_alias: str) -> Bundle:
        """Return a bundle as a checked local folder, from the cache when it is there unchanged.

        Raises:
            InputError: the registry holds neither such a version nor such an alias.
            BundleError: what was fetched is damaged.
        """
        version = self.alias(version_or_alias).version or version_or_alias
        found = self.store.read(_key(version, MANIFEST))
        if found is None:
            raise InputError(
                f"{self.store.url} holds no bundle or alias {version_or_alias!r}; "
                f"it holds {', '.join(self.versions()) or 'no bundles yet: run `willis promote`'}"
            )
        manifest = _parse_manifest(found.data, version)
        folder = self.cache / version / _content_name(manifest)
        try:
            return Bundle.load(folder)
        except BundleError:
            return self._download(manifest, found.data, folder)

    def alias(self, name: str) -> Alias:
        """Return an alias as it stands now.

        Raises:
            StoreError: the record is damaged.
        """
        found = self.store.read(f"aliases/{name}.json")
        if found is None:
            return Alias(name)
        try:
            record = AliasRecord.model_validate_json(found.data)
        except ValidationError as error:
            raise StoreError(f"aliases/{name}.json in {self.store.url} is damaged: {error}") from None
        return Alias(name, record.version, record.previous, found.tag)

    def move(self, seen: Alias, version: str) -> bool:
        """Point an alias at a version if it still is as `seen`; True for the one caller who did.

        Raises:
            InputError: the registry does not hold the version.
        """
        if self.store.read(_key(version, MANIFEST)) is None:
            raise InputError(f"{self.store.url} holds no bundle {version!r}; the alias stays where it is")
        record = AliasRecord(
            version=version, previous=seen.version, moved_at=datetime.now(UTC), move_id=uuid.uuid4().hex
        )
        key, data = f"aliases/{seen.name}.json", record.model_dump_json(indent=2).encode()
        if seen.tag is None:
            won = self.store.put_if_absent(key, data)
        else:
            won = self.store.put_if_match(key, data, seen.tag)
        # An answer lost on the way makes the client write twice, and the second write loses to the first.
        return won or (now := self.store.read(key)) is not None and now.data == data

    def forget(self, pseudonym: str) -> int:
        """Erase a patient from the samples of every bundle, in the store and in the local cache.

        Returns:
            The number of bundles that held the patient.

        Raises:
            StoreError: the store does not answer, or a bundle was changed by someone else meanwhile.
        """
        return sum(self._forget_in(version, pseudonym) for version in self.versions())

    def _forget_in(self, version: str, pseudonym: str) -> bool:
        import pandas as pd

        found = self.store.read(_key(version, MANIFEST))
        if found is None:
            return False
        manifest = _parse_manifest(found.data, version)
        reference = pd.read_parquet(io.BytesIO(self.store.get(_stored_key(manifest, "reference.parquet"))))
        seen = SeenPatients.model_validate_json(self.store.get(_stored_key(manifest, "patients.json")))
        kept = reference[reference["patient"] != pseudonym].reset_index(drop=True)
        lists = {s: tuple(p for p in getattr(seen, s) if p != pseudonym) for s in _SPLIT_FIELDS}
        replaced: dict[str, bytes] = {}
        if len(kept) < len(reference):
            replaced["reference.parquet"] = kept.to_parquet(index=False)
        if any(len(lists[s]) < len(getattr(seen, s)) for s in _SPLIT_FIELDS):
            replaced["patients.json"] = seen.model_copy(update=lists).model_dump_json().encode()
        if replaced:
            self._amend(manifest, found.tag, replaced)
            shutil.rmtree(self.cache / version, ignore_errors=True)
        return bool(replaced)

    def _amend(self, manifest: Manifest, tag: str, replaced: dict[str, bytes]) -> None:
        """Swap files of a stored bundle so that a crash at any point leaves it whole, old or new."""
        amended = manifest
        for name, data in replaced.items():
            amended = _amended(amended, name, data)
            self.store.put(_stored_key(amended, name), data)
        key = _key(manifest.version, MANIFEST)
        if not self.store.put_if_match(key, amended.model_dump_json(indent=2).encode(), tag):
            raise StoreError(
                f"{key} in {self.store.url} was changed by someone else; forget the patient again"
            )
        for name in replaced:
            self.store.delete(_stored_key(manifest, name))

    def _download(self, manifest: Manifest, manifest_bytes: bytes, folder: Path) -> Bundle:
        with _staging(folder) as staged:
            for file in manifest.files:
                (staged / file.name).write_bytes(self.store.get(_stored_key(manifest, file.name)))
            (staged / MANIFEST).write_bytes(manifest_bytes)
            Bundle.load(staged)
            _put_in_place(staged, folder)
        return Bundle.load(folder)


_SPLIT_FIELDS = ("train", "validation", "calibration", "test")


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    staged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _put_in_place(staged: Path, folder: Path) -> None:
    # Other contents of this version are bundles from before a patient was erased.
    for other in folder.parent.iterdir():
        if other.name != folder.name and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)
    try:
        staged.rename(folder)
    except OSError:
        try:
            Bundle.load(folder)  # another process was faster
        except BundleError:
            shutil.rmtree(folder)
            staged.rename(folder)


def _key(version: str, name: str) -> str:
    return f"bundles/{version}/{name}"


def _stored_key(manifest: Manifest, name: str) -> str:
    """An amended file has its digest in its key, so that old and new stand side by side while they change."""
    if not any(amendment.name == name for amendment in manifest.amendments):
        return _key(manifest.version, name)
    digest = next(file.sha256 for file in manifest.files if file.name == name)
    return _key(manifest.version, f"{digest[:16]}-{name}")


def _amended(manifest: Manifest, name: str, data: bytes) -> Manifest:
    digest = hashlib.sha256(data).hexdigest()
    before = next(file for file in manifest.files if file.name == name)
    amendment = Amendment(
        amended_at=datetime.now(UTC),
        name=name,
        sha256_before=before.sha256,
        sha256_after=digest,
        reason="a patient was erased",
    )
    file = BundleFile(name=name, sha256=digest, size_bytes=len(data))
    return manifest.model_copy(
        update={
            "files": tuple(file if old.name == name else old for old in manifest.files),
            "amendments": (*manifest.amendments, amendment),
        }
    )


def _content_name(manifest: Manifest) -> str:
    return version_of({file.name: file.sha256 for file in manifest.files})


def _parse_manifest(data: bytes, version: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"bundle {version}: {MANIFEST} is damaged: {error}") from None
    if manifest.version != version:
        raise BundleError(f"bundle {version}: {MANIFEST} says it is {manifest.version}; publish it again")
    return manifest
