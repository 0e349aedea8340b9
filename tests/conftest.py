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
NO_REAL_PATIENTS = "no real patients"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real patients (docs/real-patients.md), which are never part of the repository; CI must have them."""
    path = Path(os.environ.get("WILLIS_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not (path / "soop").is_dir():
        absent = pytest.fail if os.environ.get("CI") else pytest.skip
        absent(f"{NO_REAL_PATIENTS} below {path}")
    return path.resolve()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud at the end what could not run, where a skipped test would be one letter among hundreds."""
    skipped = terminalreporter.stats.get("skipped", [])
    num_without = sum(NO_REAL_PATIENTS in str(report.longrepr) for report in skipped)
    if num_without:
        terminalreporter.write_line(
            f"NOT RUN: {num_without} tests need real patients. Set WILLIS_DATA_DIR to a folder with soop/ "
            "and isles22/ (docs/real-patients.md says where they come from) and run again.",
            red=True,
            bold=True,
        )
