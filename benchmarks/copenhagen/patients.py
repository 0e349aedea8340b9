"""The Copenhagen Stroke Study: patients of 1991 to 1993, one table, up to eleven years of follow-up.

The table is `cost.rda` of Debian's package r-cran-pec. It is obtained below build/ and never part of this
project.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from benchmarks.rivals.environments import Rival, RivalError, python_of
from infra.local.stages import folder_made, key_of
from willis.errors import CohortError

PACKAGE = "r-cran-pec"
MEMBER = Path("usr/lib/R/site-library/pec/data/cost.rda")
FLAGS = (
    "hypTen", "ihd", "prevStroke", "othDisease", "alcohol", "diabetes", "smoke", "atrialFib", "hemor",
)  # fmt: skip
COLUMNS = ("age", "sex", *FLAGS, "strokeScore", "cholest")
"""Known at admission; strokeScore is the Scandinavian Stroke Scale, 0 worst to 58 best."""
DAYS, DIED = "time", "status"
DAYS_PER_YEAR = 365.25
READER = Path(__file__).with_name("rda.py")


@dataclass(frozen=True, eq=False)
class Task:
    """Who dies within so many years of the stroke.

    Attributes:
        frame: patients whose answer is known: `patient_id`, `poor_outcome` (1 died), COLUMNS, DAYS, DIED.
        num_censored: patients left out, for nobody knows whether they lived to the horizon.
    """

    years: int
    frame: pd.DataFrame
    num_censored: int

    @classmethod
    def of(cls, patients: pd.DataFrame, years: int) -> "Task":
        """Cut the follow-up of all patients at a horizon."""
        horizon_days = years * DAYS_PER_YEAR
        died = (patients[DIED] == 1) & (patients[DAYS] <= horizon_days)
        known = died | (patients[DAYS] >= horizon_days)
        frame = patients.assign(poor_outcome=died.astype(float))[known].reset_index(drop=True)
        return cls(years, frame, int((~known).sum()))

    @property
    def horizon_days(self) -> float:
        """When the question is asked, in days after the stroke."""
        return self.years * DAYS_PER_YEAR

    @cached_property
    def digest(self) -> str:
        """Name the patients and what is known of them."""
        return key_of(self.frame.to_csv(index=False))

    @property
    def name(self) -> str:
        """In rows and files."""
        return f"mortality_{self.years}_years" if self.years > 1 else "mortality_1_year"


def read_patients(path: Path) -> pd.DataFrame:
    """Read the study's table, one patient per row, flags as 0 and 1.

    Args:
        path: `cost.rda`, or the same table as CSV.

    Raises:
        CohortError: it cannot be read, lacks a column, or a flag is neither yes nor no.
    """
    table = _read_rda(path) if path.suffix.lower() == ".rda" else pd.read_csv(path)
    missing = {*COLUMNS, DAYS, DIED} - set(table)
    if missing:
        raise CohortError(f"{path} lacks the columns {sorted(missing)}; it has {list(table)}")
    for flag in FLAGS:
        found = set(table[flag].dropna())
        if not found <= {"yes", "no"}:
            raise CohortError(f"{path}: {flag!r} holds {sorted(map(str, found))}; it must be yes or no")
    flags = {flag: table[flag].map({"yes": 1.0, "no": 0.0}) for flag in FLAGS}
    names = [f"patient-{row:03d}" for row in range(len(table))]
    return table.assign(**flags, patient_id=names)[["patient_id", *COLUMNS, DAYS, DIED]]


def cost_file(given: Path | None, work: Path) -> Path:
    """Return the file that was given, or obtain the Debian package once, below `work`.

    Raises:
        CohortError: there is no such file, or the package cannot be had.
    """
    if given is None:
        folder = work / PACKAGE
        folder_made(folder, key_of(PACKAGE, str(MEMBER)), lambda: _obtain(folder))
        return folder / MEMBER
    if not given.is_file():
        raise CohortError(f"--data is {given}, which is not a file; give cost.rda or the same table as CSV")
    return given


def _obtain(folder: Path) -> None:
    folder.mkdir(parents=True)
    _finished(["apt-get", "--quiet", "download", PACKAGE], folder)
    (package,) = folder.glob("*.deb")
    _finished(["dpkg-deb", "--extract", package.name, "."], folder)
    if not (folder / MEMBER).is_file():
        raise CohortError(f"{package.name} holds no {MEMBER}; give --data FILE with another version's")


def _finished(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        said = str(error)
    if said:
        raise CohortError(
            f"the Copenhagen Stroke Study cannot be had: `{' '.join(command)}` said "
            f"{said.splitlines()[-1]!r}; run `apt-get update`, or give --data FILE with cost.rda of the R "
            "package pec, or the same table as CSV"
        )


def _read_rda(path: Path) -> pd.DataFrame:
    try:
        python = python_of(Rival.named("survival_forest"))
    except RivalError as error:
        raise CohortError(
            f"{path} is R data, and what reads it {error}; give --data the same table as CSV"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "table.parquet"
        command = [str(python), "-P", str(READER), str(path.resolve()), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise CohortError(f"{path} cannot be read as R data, the reader said {said!r}")
        return pd.read_parquet(out)
