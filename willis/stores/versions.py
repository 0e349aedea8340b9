"""Versions of a cohort by DVC: the only importer of dvc.

DVC's repository is a folder of its own beside the cohort (`.versions/NAME/`, without an SCM), so it does not
matter whether the cohort lies in a git checkout, below an ignored `build/`, or on another disk. `NAME.dvc` in
it is an ordinary DVC file: `dvc pull` there brings the version back.

DVC runs in a process of its own, because its S3 client can spend minutes in retries that nothing interrupts;
a process can be ended. It says what it does line by line, and one that says nothing for `timeout_s` is ended.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from willis.cohort.bids import VOLUME_ENDINGS
from willis.errors import CohortError, StoreError
from willis.settings import Settings
from willis.stores.watched import SilenceError, answer, ask

_REMOTE = "store"
_BATCH = 32
_LINKED = (*VOLUME_ENDINGS, ".png", ".npy")
_TABLES = (".tsv", ".parquet")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PushedVersion(_Record):
    """A version that was seen whole on the remote.

    Attributes:
        md5: DVC's name of the version, `HEX.dir`.
        num_pushed: files that this run had to send; 0 when the remote had them all.
    """

    md5: str
    size_bytes: int
    num_files: int
    num_pushed: int
    remote: str


class Purged(_Record):
    """What was removed so that no version holds a patient any more."""

    num_local: int = 0
    num_remote: int = 0
    num_versions: int = 0


class _Request(_Record):
    action: Literal["push", "purge"]
    cohort: Path
    remote: str
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    timeout_s: float
    patient_id: str = ""
    own_md5: tuple[str, ...] = ()


class _Event(_Record):
    kind: Literal["progress", "done", "error"]
    stage: str = ""
    num_done: int = 0
    num_total: int = 0
    message: str = ""
    version: PushedVersion | None = None
    purged: Purged | None = None


def versions_folder(cohort: Path) -> Path:
    """Where the DVC repository of a cohort lies."""
    cohort = cohort.absolute()
    return cohort.parent / ".versions" / cohort.name


def push_version(cohort: Path, timeout_s: float, settings: Settings) -> PushedVersion:
    """Add the cohort to DVC, send what the remote lacks, and look whether everything arrived.

    Volumes enter DVC's cache as links (reflink, else hard link, which makes them read-only; else a copy);
    tables and JSON files are copied, so that they stay editable.

    Args:
        cohort: folder of the cohort.
        timeout_s: longest silence of DVC or of the remote that is taken for life.
        settings: `dvc_remote` (a folder or s3://bucket/prefix) and the S3 endpoint and keys.

    Raises:
        CohortError: there is no such folder, or it is empty.
        StoreError: the remote does not answer, refuses, or lacks a file after the push; what arrived stays
            there and the next push sends the rest.
    """
    event = _ask(_request("push", cohort, timeout_s, settings))
    assert event.version is not None
    return event.version


def purge_patient(
    cohort: Path, patient_id: str, own_md5: tuple[str, ...], timeout_s: float, settings: Settings
) -> Purged:
    """Remove a patient from every version but the present one, here and on the remote.

    Removed are the patient's own files, the tables of the versions that hold them, and those versions' lists
    of files, so that they can no longer be pulled. Whatever the present version uses stays, and so does
    another cohort's patient of the same name.

    Args:
        cohort: folder of the cohort, the patient already gone from it and the rest pushed.
        patient_id: `sub-LABEL`.
        own_md5: the patient's files, for a machine whose cache never held the older versions.
        timeout_s: longest silence of the remote.
        settings: the DVC remote and its keys.

    Raises:
        StoreError: the remote does not answer; what is left is removed by asking again.
    """
    request = _request("purge", cohort, timeout_s, settings)
    event = _ask(request.model_copy(update={"patient_id": patient_id, "own_md5": own_md5}))
    assert event.purged is not None
    return event.purged


def _request(
    action: Literal["push", "purge"], cohort: Path, timeout_s: float, settings: Settings
) -> _Request:
    if not cohort.is_dir() or not any(cohort.rglob("*.*")):
        raise CohortError(f"{cohort} is no folder with files; `willis cohort synthesise|import` makes one")
    remote = settings.dvc_remote
    if "://" in remote and not remote.startswith("s3://"):
        raise StoreError(f"WILLIS_DVC_REMOTE is {remote!r}; it must be a folder or s3://bucket/prefix")
    access, secret = settings.s3_access_key, settings.s3_secret_key
    return _Request(
        action=action,
        cohort=cohort.absolute(),
        remote=remote.rstrip("/") if "://" in remote else str(Path(remote).absolute()),
        endpoint_url=settings.s3_endpoint_url,
        access_key=access.get_secret_value() if access else None,
        secret_key=secret.get_secret_value() if secret else None,
        timeout_s=timeout_s,
    )


def _ask(request: _Request) -> _Event:
    """Let the DVC process work, show how far it is, and end it when it falls silent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    state = versions_folder(request.cohort)
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot keep versions in {state} ({error}); the folder must be writable") from None
    last = _Event(kind="progress", stage="starting DVC")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    log = state / "last-run.log"
    said = ask(
        "willis.stores.versions", request.model_dump_json(), _environment(state), log, request.timeout_s
    )
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with closing(said), Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(last.stage, total=None)
        try:
            for line in said:
                event = _Event.model_validate_json(line)
                if event.kind == "error":
                    raise StoreError(f"{_where(request, last)} failed: {event.message}{_REST}")
                if event.kind == "done":
                    return event
                last = event
                total = event.num_total or None
                progress.update(task, description=event.stage, completed=event.num_done, total=total)
        except SilenceError:
            rule = f"said nothing for {request.timeout_s:g} s (params.yaml: version.timeout_s)"
            raise StoreError(f"{_where(request, last)} {rule}{_REST}") from None
    raise StoreError(f"{_where(request, last)} ended early; its last words are in {log}")


_REST = "; nothing is lost, the same command again goes on from there"


def _where(request: _Request, last: _Event) -> str:
    count = f" ({last.num_done} of {last.num_total} files)" if last.num_total else ""
    return f"{last.stage}{count}, DVC remote {request.remote},"


def _environment(state: Path) -> dict[str, str]:
    """DVC keeps to its own folder: no analytics, no configuration or index of this machine's user."""
    return {
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(state / "config"),
        "DVC_SYSTEM_CONFIG_DIR": str(state / "config"),
        "DVC_SITE_CACHE_DIR": str(state / "site"),
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    }


# From here on: the DVC process. `dvc_data` is DVC's own library, the one behind `dvc add` and `dvc push`.


class _Worker:
    """One DVC repository, opened for one request; says how far it is."""

    def __init__(self, request: _Request, say: Callable[[str], None]) -> None:
        from dvc.repo import Repo

        self.request, self.say, self.last_said = request, say, 0.0
        self.stage, self.before, self.total = "", 0, 0
        self.state = versions_folder(request.cohort)
        on_s3 = "://" in request.remote
        if not (self.state / ".dvc").is_dir():
            Repo.init(str(self.state), no_scm=True).close()
        endpoint = {"endpointurl": request.endpoint_url} if on_s3 and request.endpoint_url else {}
        with Repo(str(self.state)).config.edit("repo") as config:
            config["remote"] = {_REMOTE: {"url": request.remote, **endpoint}}
            config["core"] = {"no_scm": True, "remote": _REMOTE, "analytics": False, "check_update": False}
        keys = {"access_key_id": request.access_key, "secret_access_key": request.secret_key}
        limits = {"connect_timeout": 10, "read_timeout": max(1, int(request.timeout_s))}
        private = {key: value for key, value in (keys | limits).items() if on_s3 and value is not None}
        self.repo = Repo(str(self.state), config={"remote": {_REMOTE: private}})
        self.cache = self.repo.cache.local
        self.remote = self.repo.cloud.get_remote_odb(_REMOTE)
        self.callback = _pulse(self.tick)

    def tell(self, event: _Event) -> None:
        self.say(event.model_dump_json())

    def begin(self, stage: str, total: int = 0) -> None:
        self.stage, self.before, self.total = stage, 0, total
        self.callback.value = 0
        self.tell(_Event(kind="progress", stage=stage, num_total=total))

    def tick(self) -> None:
        """Something moved; tell it, at most ten times a second."""
        if time.monotonic() - self.last_said > 0.1:
            self.last_said = time.monotonic()
            done = min(self.before + self.callback.value, self.total) if self.total else 0
            self.tell(_Event(kind="progress", stage=self.stage, num_done=done, num_total=self.total))

    def push(self) -> PushedVersion:
        tree, meta = self.add()
        name = tree.hash_info.value
        wanted = {item.value: entry.size for _, entry, item in tree}
        wanted[name] = Path(self.cache.oid_to_path(name)).stat().st_size
        missing = self.missing(wanted)
        # The list of files goes last: whoever finds it on the remote may trust that its files are there.
        self.send([oid for oid in missing if oid != name])
        self.send([oid for oid in missing if oid == name])
        # Not `dvc status -c`: that one believes a list it finds and does not look at the files themselves.
        absent = self.missing(wanted) if missing else []
        if absent:
            raise StoreError(f"{len(absent)} of {len(wanted)} files are not on the remote after the push")
        sent, place = len(missing), self.request.remote
        return PushedVersion(
            md5=name, size_bytes=meta.size, num_files=meta.nfiles, num_pushed=sent, remote=place
        )

    def add(self) -> tuple[Any, Any]:
        """What `dvc add` does, but the cohort stays where it is, outside of DVC's workspace."""
        from dvc.fs import localfs
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.db import add_update_tree

        cohort = self.request.cohort
        self.begin("hashing")
        built = build(self.cache, str(cohort), localfs, "md5", callback=self.callback)
        meta, tree = built[1], cast(Any, built[2])
        paths = {item.value: str(cohort.joinpath(*key)) for key, _, item in tree}
        new = {oid: path for oid, path in paths.items() if not self.cache.exists(oid)}
        for link in (True, False):
            some = {oid: path for oid, path in new.items() if path.endswith(_LINKED) is link}
            self.cache.add(list(some.values()), localfs, list(some), hardlink=link, callback=self.callback)
        add_update_tree(self.cache, tree)
        _replace(
            self.state / f"{cohort.name}.dvc",
            f"outs:\n- md5: {tree.hash_info.value}\n  size: {meta.size}\n  nfiles: {meta.nfiles}\n"
            f"  hash: md5\n  path: {json.dumps(cohort.name)}\n",
        )
        return tree, meta

    def missing(self, wanted: dict[str, int]) -> list[str]:
        """Objects that the remote lacks or has in another size, by a fresh listing."""
        self.begin("looking at the remote")
        sizes = dict(self.listing())
        return sorted(oid for oid, size in wanted.items() if sizes.get(oid) != size)

    def listing(self) -> Iterator[tuple[str, int]]:
        if "://" not in self.request.remote:
            yield from _objects_in(Path(self.remote.path))
            return
        filesystem = self.remote.fs.fs
        filesystem.invalidate_cache()
        for key, info in filesystem.find(self.remote.path, detail=True).items():
            yield "".join(key.rsplit("/", 2)[1:]), int(info["size"])

    def send(self, oids: list[str]) -> None:
        """Send in batches and stop at the first failure, which DVC's own push would retry file by file."""
        if oids:
            self.begin("sending", len(oids))
        for start in range(0, len(oids), _BATCH):
            self.before, self.callback.value = start, 0
            batch = oids[start : start + _BATCH]
            paths = [self.cache.oid_to_path(oid) for oid in batch]
            self.remote.add(paths, self.cache.fs, batch, check_exists=False, callback=self.callback)

    def purge(self) -> Purged:
        """Remove what holds the patient and is not in the present version."""
        self.begin("looking for older versions")
        present = (self.state / f"{self.request.cohort.name}.dvc").read_text().split("md5: ")[1].split()[0]
        here, there = dict(_objects_in(Path(self.cache.path))), dict(self.listing())
        old = {oid for oid in here | there if oid.endswith(".dir")} - {present}
        lists = {oid: self.files_of(oid) for oid in old}
        own = set(self.request.own_md5) | {
            md5 for oid in old & here.keys() for path, md5 in lists[oid] if self.is_own(path)
        }
        kept = {md5 for _, md5 in self.files_of(present)} | {present}
        doomed = self.doomed(lists, own - kept) - kept
        # Lists of files last: they are how an interrupted purge finds its way again.
        for oid in sorted(doomed, key=lambda oid: oid.endswith(".dir")):
            for store, objects in ((self.remote, there), (self.cache, here)):
                if oid in objects:
                    store.delete(oid)
        local, remote = len(doomed & here.keys()), len(doomed & there.keys())
        return Purged(num_local=local, num_remote=remote, num_versions=len(doomed & old))

    def doomed(self, lists: dict[str, list[tuple[str, str]]], own: set[str]) -> set[str]:
        """The patient's objects, the tables and lists of versions that hold them; not what others use."""
        found, others = set(own), set()
        for oid, files in lists.items():
            if any(md5 in own and self.is_own(path) for path, md5 in files):
                found |= {md5 for path, md5 in files if self.is_own(path) or path.endswith(_TABLES)} | {oid}
            else:
                others |= {md5 for _, md5 in files}
        return found - others

    def is_own(self, path: str) -> bool:
        return self.request.patient_id in path.split("/")

    def files_of(self, oid: str) -> list[tuple[str, str]]:
        """The (path, md5) pairs of a version's list of files, from here or from the remote."""
        store = self.cache if self.cache.exists(oid) else self.remote
        with store.fs.open(store.oid_to_path(oid), "rb") as stream:
            return [(entry["relpath"], entry["md5"]) for entry in json.loads(stream.read())]


def _pulse(tick: Callable[[], None]) -> Any:
    """A progress callback of DVC's kind that ticks for every file and every part of a big one."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped, unused-ignore]

    class Pulse(Callback):  # type: ignore[misc]
        def call(self, hook_name: str | None = None, **kwargs: object) -> None:
            tick()

        def branched(self, path_1: str, path_2: str, **kwargs: object) -> Callback:
            return Pulse()

    return Pulse()


def _objects_in(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.glob("??/*"):
        yield path.parent.name + path.name, path.stat().st_size


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _work(text: str, say: Callable[[str], None]) -> None:
    import traceback

    try:
        request = _Request.model_validate_json(text)
        worker = _Worker(request, say)
        with worker.repo.lock:
            push = request.action == "push"
            answered = {"version": worker.push()} if push else {"purged": worker.purge()}
        worker.tell(_Event.model_validate({"kind": "done", **answered}))
    except Exception as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        say(_Event(kind="error", message=message).model_dump_json())


if __name__ == "__main__":
    answer(_work)
