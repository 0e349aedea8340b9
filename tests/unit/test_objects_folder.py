"""The folder store: keys, whole writes, conditional writes between processes."""

import multiprocessing
import os
from pathlib import Path

import pytest

from willis.errors import InputError, SettingsError, StoreError
from willis.settings import Settings
from willis.stores.objects import FolderStore, checked_key, open_store

RACERS = 16


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.locks",
        "a\\b",
        "a b",
        "a\0b",
        "x" * 901,
    ],
)
def test_a_key_that_could_leave_the_store_is_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(InputError, match="refused"):
        store.put(key, b"x")
    with pytest.raises(InputError, match="refused"):
        store.read(key)


@pytest.mark.parametrize(
    "key", ["a", "sub-0001/dwi/sub-0001_space-MNI152_dwi.nii.gz", "2026-05-01T12_00+00=x@y,z"]
)
def test_the_keys_of_real_files_are_taken(key: str) -> None:
    assert checked_key(key) == key


def test_a_link_out_of_the_store_is_refused(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store.put("a/b", b"1")
    (store.root / "a" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads out"):
        store.read("a/link")


def test_what_is_put_can_be_read_listed_copied_and_deleted(store: FolderStore, tmp_path: Path) -> None:
    store.put("a/x", b"1")
    store.put("a/y/z", b"22")
    store.put("ab", b"3")
    assert store.list() == ("a/x", "a/y/z", "ab")
    assert store.list("a") == ("a/x", "a/y/z")
    assert store.get("a/x") == b"1"
    assert store.local_copy("a/y/z", tmp_path / "copy").read_bytes() == b"22"
    store.delete("a/x")
    store.delete("a/x")
    assert store.read("a/x") is None
    assert FolderStore(tmp_path / "nowhere").list() == ()


def test_an_absent_object_is_named(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no object 'a/x'"):
        store.get("a/x")
    with pytest.raises(InputError, match="no object 'a/x'"):
        store.local_copy("a/x", tmp_path)


def test_a_copy_larger_than_allowed_is_refused_and_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    store.put("a", b"12345")
    with pytest.raises(InputError, match="5 bytes; at most 4"):
        store.local_copy("a", tmp_path / "copy", max_bytes=4)
    assert not (tmp_path / "copy").exists()


def test_the_second_writer_of_an_absent_object_loses(store: FolderStore) -> None:
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    assert store.get("a") == b"1"


def test_a_swap_against_an_old_state_loses(store: FolderStore) -> None:
    store.put("a", b"1")
    seen = store.read("a")
    assert seen is not None
    assert store.put_if_match("a", b"2", seen.tag)
    assert not store.put_if_match("a", b"3", seen.tag)
    assert not store.put_if_match("absent", b"3", seen.tag)
    assert store.get("a") == b"2"


def _race(root: Path, me: int, tag: str | None, gate: "multiprocessing.synchronize.Event") -> None:
    store = FolderStore(root)
    gate.wait()
    data = f"writer {me}".encode()
    won = store.put_if_absent("a", data) if tag is None else store.put_if_match("a", data, tag)
    os._exit(0 if won else 1)


@pytest.mark.parametrize("exists", [False, True])
def test_of_sixteen_racing_processes_one_wins(store: FolderStore, exists: bool) -> None:
    tag = None
    if exists:
        store.put("a", b"start")
        seen = store.read("a")
        assert seen is not None
        tag = seen.tag
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    racers = [context.Process(target=_race, args=(store.root, k, tag, gate)) for k in range(RACERS)]
    for racer in racers:
        racer.start()
    gate.set()
    for racer in racers:
        racer.join()
    winners = [k for k, racer in enumerate(racers) if racer.exitcode == 0]
    assert len(winners) == 1
    assert store.get("a") == f"writer {winners[0]}".encode()


def test_a_write_that_dies_leaves_the_old_object_and_is_not_listed(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a/x", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="No space left on device"):
        patched.setattr(os, "fsync", full)
        store.put("a/x", b"new")
    assert store.get("a/x") == b"old"
    assert store.list() == ("a/x",)


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://", "http://host/x"])
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"folder or s3://bucket/prefix"):
        open_store(url, Settings())
