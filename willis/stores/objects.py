"""Objects in a folder or in S3, behind one protocol: the only module that imports boto3.

Both stores write an object whole or not at all, and both offer the two conditional writes on which the
registry rests: `put_if_absent` (the first writer wins) and `put_if_match` (compare and swap: the writer who
read the newest state wins). The folder store does them with a hard link and a lock file, S3 with
`If-None-Match` and `If-Match`.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from willis.errors import InputError, SettingsError, StoreError

if TYPE_CHECKING:
    from willis.settings import Settings

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]*")
_MAX_KEY = 900
_LOCKS = ".locks"
_TIMEOUT_S = 20
_TRIES = 4
_CHUNK = 1 << 20
R = TypeVar("R")


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes together with the tag of exactly these bytes' version."""

    data: bytes
    tag: str


class ObjectStore(Protocol):
    """What the registry and the endpoint need of a store. Keys are `a/b/c`, relative to the store's URL."""

    url: str

    def read(self, key: str) -> StoredObject | None:
        """Return the object and its tag, or None when there is none."""

    def get(self, key: str) -> bytes:
        """Return the object's bytes; raises InputError when there is none."""
        found = self.read(key)
        if found is None:
            raise _absent(self.url, key)
        return found.data

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever was there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object if there is none yet; True for the one writer who did."""

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Write the object if its tag is still `tag`; True for the one writer who did."""

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Return all keys below a folder-like prefix (`bundles/abc`), sorted."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error when there is none."""

    def local_copy(self, key: str, folder: Path, max_bytes: int | None = None) -> Path:
        """Copy the object to `folder/key` and return that path; raises InputError when absent or larger."""


def open_store(url: str, settings: "Settings") -> ObjectStore:
    """Open the store behind a URL.

    Args:
        url: a folder, or `s3://bucket/prefix`.
        settings: supplies endpoint and keys of S3.

    Raises:
        SettingsError: the URL is of another kind or names no bucket.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return FolderStore(Path(url))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise SettingsError(f"{url!r} is no store; it must be a folder or s3://bucket/prefix")
    return S3Store(bucket, prefix.strip("/"), _client(settings))


def checked_key(key: str) -> str:
    """Return the key if it can neither leave its store nor meet a store's own files.

    Raises:
        InputError: the key is empty, absolute, too long, or a segment has other characters.
    """
    if len(key) > _MAX_KEY or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InputError(
            f"object key {key[:120]!r} is refused; a key is segments of letters, digits and _.=+@,- "
            f"joined by single slashes, none of them starting with a dot, {_MAX_KEY} characters at most"
        )
    return key


class FolderStore(ObjectStore):
    """Objects as files. Two processes on one machine (or one POSIX file system) see each other's writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def read(self, key: str) -> StoredObject | None:
        """See ObjectStore.read."""
        path = self._path(key)
        with self._errors("read", key):
            if not path.is_file():
                return None
            data = path.read_bytes()
        return StoredObject(data, _digest(data))

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore.put."""
        with self._errors("write", key), self._locked(key), self._staged(key, data) as staged:
            staged.replace(self._path(key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See ObjectStore.put_if_absent."""
        with self._errors("write", key), self._locked(key), self._staged(key, data) as staged:
            try:
                os.link(staged, self._path(key))
            except FileExistsError:
                return False
        return True

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """See ObjectStore.put_if_match."""
        with self._errors("write", key), self._locked(key):
            found = self.read(key)
            if found is None or found.tag != tag:
                return False
            with self._staged(key, data) as staged:
                staged.replace(self._path(key))
        return True

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """See ObjectStore.list."""
        top = self._path(prefix) if prefix else self.root
        with self._errors("list", prefix):
            paths = [path.relative_to(self.root) for path in top.rglob("*") if path.is_file()]
        return tuple(
            sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
        )

    def delete(self, key: str) -> None:
        """See ObjectStore.delete."""
        with self._errors("delete", key), self._locked(key):
            self._path(key).unlink(missing_ok=True)

    def local_copy(self, key: str, folder: Path, max_bytes: int | None = None) -> Path:
        """See ObjectStore.local_copy."""
        source = self._path(key)
        with self._errors("read", key):
            if not source.is_file():
                raise _absent(self.url, key)
            _check_size(key, source.stat().st_size, max_bytes)
            return _write_copy(folder, key, lambda target: shutil.copyfile(source, target))

    def _path(self, key: str) -> Path:
        path = self.root / checked_key(key)
        # A link inside the store could still lead out of it.
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"object key {key!r} leads out of {self.url}; links may not leave the store")
        return path

    @contextmanager
    def _staged(self, key: str, data: bytes) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield staged
            _sync_folder(path.parent)
        finally:
            staged.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        import fcntl

        locks = self.root / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        # The lock file stays: removing it would let two writers hold two different files of one name.
        with (locks / _digest(checked_key(key).encode())[:32]).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot {verb} {key!r} in {self.url}: {error.strerror or error}") from error


class S3Store(ObjectStore):
    """Objects in a bucket of S3 or of a server that speaks its protocol, conditional writes included."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self.bucket, self.prefix, self.client = bucket, prefix, client
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, key: str) -> StoredObject | None:
        """See ObjectStore.read."""

        def fetch() -> StoredObject:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._name(key))
            return StoredObject(answer["Body"].read(), answer["ETag"])

        return self._call("read", key, fetch, absent=("NoSuchKey", "404"))

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore.put."""
        self._put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See ObjectStore.put_if_absent."""
        return self._put(key, data, IfNoneMatch="*")

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """See ObjectStore.put_if_match."""
        return self._put(key, data, IfMatch=tag)

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """See ObjectStore.list."""
        start = self._name(prefix) + "/" if prefix else (f"{self.prefix}/" if self.prefix else "")

        def names() -> list[str]:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

        below = len(self.prefix) + 1 if self.prefix else 0
        return tuple(sorted(name[below:] for name in self._call("list", prefix, names) or ()))

    def delete(self, key: str) -> None:
        """See ObjectStore.delete."""
        self._call("delete", key, lambda: self.client.delete_object(Bucket=self.bucket, Key=self._name(key)))

    def local_copy(self, key: str, folder: Path, max_bytes: int | None = None) -> Path:
        """See ObjectStore.local_copy."""

        def fetch() -> Path:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._name(key))
            _check_size(key, int(answer["ContentLength"]), max_bytes)
            return _write_copy(folder, key, lambda target: _stream(answer["Body"], target))

        path = self._call("read", key, fetch, absent=("NoSuchKey", "404"))
        if path is None:
            raise _absent(self.url, key)
        return path

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _put(self, key: str, data: bytes, **conditions: str) -> bool:
        def write() -> bool:
            self.client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **conditions)
            return True

        lost = ("PreconditionFailed", "412", *(("NoSuchKey", "404") if "IfMatch" in conditions else ()))
        return bool(self._call("write", key, write, absent=lost))

    def _call(self, verb: str, key: str, action: Callable[[], R], absent: tuple[str, ...] = ()) -> R | None:
        from botocore.exceptions import BotoCoreError, ClientError

        place = f"{verb} {key!r} in {self.url}"
        for attempt in range(_TRIES):
            try:
                return action()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in absent:
                    return None
                # Two conditional writes met in flight: S3 asks one of them to try again.
                if code not in ("ConditionalRequestConflict", "409") or attempt == _TRIES - 1:
                    raise StoreError(f"cannot {place}: {code}: {error}") from error
            except BotoCoreError as error:
                raise StoreError(
                    f"cannot {place}: {error}; check WILLIS_S3_ENDPOINT_URL and that the server runs"
                ) from error
        return None


def _client(settings: "Settings") -> Any:
    import boto3
    from botocore.config import Config

    secret = settings.s3_secret_key and settings.s3_secret_key.get_secret_value()
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=settings.s3_access_key and settings.s3_access_key.get_secret_value(),
        aws_secret_access_key=secret,
        region_name=None if settings.s3_endpoint_url is None else "us-east-1",
        config=Config(
            connect_timeout=5,
            read_timeout=_TIMEOUT_S,
            retries={"mode": "standard", "max_attempts": _TRIES},
            # Servers other than AWS's answer at a path, seldom at a host name per bucket.
            s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
        ),
    )


def _write_copy(folder: Path, key: str, write: Callable[[Path], object]) -> Path:
    target = folder / key
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        write(staged)
        return staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def _stream(body: Any, target: Path) -> None:
    with target.open("wb") as file:
        for chunk in body.iter_chunks(_CHUNK):
            file.write(chunk)


def _check_size(key: str, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise InputError(f"object {key!r} has {size} bytes; at most {max_bytes} are taken")


def _absent(url: str, key: str) -> InputError:
    return InputError(f"there is no object {key!r} in {url}; check the key")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
