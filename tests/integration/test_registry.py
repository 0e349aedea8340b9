"""The registry on a folder and on a real S3 server: whole bundles, one winner, a way back, erasure."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.bundles import a_bundle
from willis.errors import BundleError, InputError, StoreError
from willis.models.bundle import MANIFEST, Bundle
from willis.params import PromoteParams
from willis.settings import Settings
from willis.stores.registry import Alias, Registry

pytestmark = pytest.mark.integration
RACERS = 16


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an empty registry."""
    if request.param == "folder":
        yield Settings(registry=str(tmp_path / "registry"), bundle_cache=tmp_path / "cache")
        return
    server = request.getfixturevalue("s3")
    yield Settings(
        registry=f"s3://{server.bucket}/registry/{tmp_path.name}",
        bundle_cache=tmp_path / "cache",
        s3_endpoint_url=server.endpoint_url,
        s3_access_key=SecretStr(server.access_key),
        s3_secret_key=SecretStr(server.secret_key),
    )


@pytest.fixture
def registry(place: Settings) -> Registry:
    return Registry.open(place)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return a_bundle(tmp_path, seed=1)


def test_a_bundle_comes_back_as_it_was_published(registry: Registry, bundle: Bundle) -> None:
    registry.publish(bundle)
    registry.publish(bundle)
    fetched = registry.fetch(bundle.version)
    assert fetched.manifest == bundle.manifest
    assert registry.versions() == (bundle.version,)


def test_a_bundle_is_fetched_by_its_alias_too(registry: Registry, bundle: Bundle) -> None:
    registry.publish(bundle)
    assert registry.move(registry.alias("champion"), bundle.version)
    assert registry.fetch("champion").version == bundle.version


def test_an_unknown_version_is_named_with_those_that_are_there(registry: Registry, bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no bundles yet"):
        registry.fetch("champion")
    registry.publish(bundle)
    with pytest.raises(InputError, match=f"'nothing'.*{bundle.version}"):
        registry.fetch("nothing")


def test_half_a_bundle_is_no_bundle_and_can_be_published_again(registry: Registry, bundle: Bundle) -> None:
    """A promoter that dies before bundle.json leaves the champion and the list of versions alone."""
    first = bundle.manifest.files[0].name
    registry.store.put(f"bundles/{bundle.version}/{first}", b"half")
    assert registry.versions() == ()
    with pytest.raises(InputError, match="the alias stays"):
        registry.move(registry.alias("champion"), bundle.version)
    registry.publish(bundle)
    assert registry.fetch(bundle.version).manifest == bundle.manifest


def test_a_file_changed_in_the_store_is_refused(registry: Registry, bundle: Bundle) -> None:
    registry.publish(bundle)
    registry.store.put(f"bundles/{bundle.version}/calibration.json", b'{"temperature": 9}')
    with pytest.raises(BundleError, match=r"calibration.json has sha256"):
        registry.fetch(bundle.version)


def test_a_damaged_cache_is_fetched_again(registry: Registry, bundle: Bundle) -> None:
    registry.publish(bundle)
    fetched = registry.fetch(bundle.version)
    (fetched.folder / "model.safetensors").write_bytes(b"")
    assert Bundle.load(registry.fetch(bundle.version).folder).version == bundle.version


def race(call: Callable[[int], Any]) -> list[Any]:
    answers: list[Any] = [None] * RACERS
    gate = threading.Barrier(RACERS)

    def run(k: int) -> None:
        gate.wait()
        answers[k] = call(k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("exists", [False, True])
def test_of_sixteen_racing_promoters_one_wins(place: Settings, tmp_path: Path, exists: bool) -> None:
    registries = [Registry.open(place) for _ in range(RACERS)]
    first, second = a_bundle(tmp_path, seed=1), a_bundle(tmp_path, seed=2)
    for bundle in (first, second):
        registries[0].publish(bundle)
    if exists:
        assert registries[0].move(Alias("champion"), first.version)
    seen = registries[0].alias("champion")
    won = race(lambda k: registries[k].move(seen, second.version))
    assert sorted(won) == [False] * (RACERS - 1) + [True]
    now = registries[0].alias("champion")
    assert (now.version, now.previous) == (second.version, first.version if exists else None)


def test_two_processes_that_fetch_at_once_both_get_the_bundle(place: Settings, bundle: Bundle) -> None:
    Registry.open(place).publish(bundle)
    registries = [Registry.open(place) for _ in range(RACERS)]
    assert race(lambda k: registries[k].fetch(bundle.version).version) == [bundle.version] * RACERS


def test_a_rollback_points_back_and_names_what_it_left(place: Settings, tmp_path: Path) -> None:
    from willis.steps.promote import rollback

    registry = Registry.open(place)
    old, new = a_bundle(tmp_path, seed=1), a_bundle(tmp_path, seed=2)
    for bundle in (old, new):
        registry.publish(bundle)
        assert registry.move(registry.alias("champion"), bundle.version)
    done = rollback(old.version, PromoteParams(), place)
    assert (done.moved, done.champion) == (True, new.version)
    assert registry.alias("champion").version == old.version
    assert rollback("previous", PromoteParams(), place).version == new.version
    assert not rollback(new.version, PromoteParams(), place).moved
    with pytest.raises(InputError, match="holds no bundle"):
        rollback("0" * 16, PromoteParams(), place)
    assert registry.alias("champion").version == new.version


def test_a_rollback_to_a_damaged_bundle_leaves_the_champion(place: Settings, tmp_path: Path) -> None:
    from willis.steps.promote import rollback

    registry = Registry.open(place)
    good, bad = a_bundle(tmp_path, seed=1), a_bundle(tmp_path, seed=2)
    for bundle in (good, bad):
        registry.publish(bundle)
    assert registry.move(registry.alias("champion"), good.version)
    registry.store.put(f"bundles/{bad.version}/model.safetensors", b"damaged")
    with pytest.raises(BundleError, match=r"model.safetensors"):
        rollback(bad.version, PromoteParams(), place)
    assert registry.alias("champion").version == good.version


def test_a_forgotten_patient_is_in_no_bundle_and_no_cache(registry: Registry, bundle: Bundle) -> None:
    registry.publish(bundle)
    before = registry.fetch(bundle.version)
    patient = str(before.reference()["patient"][3])
    assert registry.forget(patient) == 1
    assert registry.forget(patient) == 0
    assert not before.folder.exists()
    after = registry.fetch(bundle.version)
    assert after.version == bundle.version
    assert patient not in set(after.reference()["patient"])
    assert patient not in after.patients().learned_from()
    assert len(after.reference()) == 19
    held = [registry.store.get(key) for key in registry.store.list(f"bundles/{bundle.version}")]
    assert not any(patient.encode() in data for data in held)
    assert registry.forget(str(after.reference()["patient"][0])) == 1
    assert len(registry.fetch(bundle.version).reference()) == 18


def test_erasure_that_dies_between_two_writes_leaves_a_bundle_that_loads(
    registry: Registry, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(bundle)
    patient = str(bundle.reference()["patient"][0])

    def dies(key: str, data: bytes, tag: str) -> bool:
        raise StoreError("the connection was lost")

    with monkeypatch.context() as patched, pytest.raises(StoreError):
        patched.setattr(registry.store, "put_if_match", dies)
        registry.forget(patient)
    assert registry.fetch(bundle.version).version == bundle.version
    assert registry.forget(patient) == 1
    assert patient not in set(registry.fetch(bundle.version).reference()["patient"])


def test_a_server_that_does_not_answer_is_a_store_error(tmp_path: Path) -> None:
    place = Settings(
        registry="s3://willis/x",
        bundle_cache=tmp_path,
        s3_endpoint_url="http://127.0.0.1:9",
        s3_access_key=SecretStr("a"),
        s3_secret_key=SecretStr("b"),
    )
    with pytest.raises(StoreError, match="WILLIS_S3_ENDPOINT_URL"):
        Registry.open(place).alias("champion")


def test_wrong_keys_are_a_store_error_that_names_the_code(s3: Any, tmp_path: Path) -> None:
    place = Settings(
        registry=f"s3://{s3.bucket}/x",
        bundle_cache=tmp_path,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=SecretStr(s3.access_key),
        s3_secret_key=SecretStr("wrong"),
    )
    with pytest.raises(StoreError, match="SignatureDoesNotMatch|AccessDenied"):
        Registry.open(place).alias("champion")


def test_the_manifest_is_the_last_file_of_a_bundle_to_be_written(
    registry: Registry, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    for name in ("put", "put_if_absent"):
        write = getattr(registry.store, name)

        def noted(key: str, data: bytes, write: Any = write) -> Any:
            written.append(key)
            return write(key, data)

        monkeypatch.setattr(registry.store, name, noted)
    registry.publish(bundle)
    assert written[-1].endswith(MANIFEST)
    assert len(written) == len(bundle.manifest.files) + 1
