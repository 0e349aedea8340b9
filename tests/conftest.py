"""Fixtures that every tier may ask for; the real servers live in tests/fixtures/, one file each."""

import os
from pathlib import Path

import pytest

pytest_plugins: list[str] = [
    f"tests.fixtures.{path.stem}"
    for path in sorted((Path(__file__).parent / "fixtures").glob("*.py"))
    if path.stem != "__init__"
]

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real patients (docs/real-patients.md), which are never part of the repository."""
    path = Path(os.environ.get("WILLIS_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not (path / "soop").is_dir():
        pytest.fail(
            f"no real patients below {path}: set WILLIS_DATA_DIR to a folder with soop/ and isles22/ "
            "(docs/real-patients.md says where they come from)"
        )
    return path.resolve()
