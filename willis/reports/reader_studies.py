"""Studies to train the embedded reader on: synthetic, from scanners that no cohort has, with their truth.

Every patient is drawn as in a cohort, but seen by a scanner of its own, drawn anew from wide ranges, so that
the reader learns lesions and not one machine. The true lesion mask is measured with the very code that
measures real ones; its facts are what a report should say.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from willis.cohort.crew import work
from willis.cohort.lesions import GRID, load_library
from willis.cohort.patients import draw
from willis.cohort.physics import Scanner
from willis.cohort.render import Study as RenderedStudy
from willis.cohort.render import render
from willis.cohort.staging import finished, plan_of, staged
from willis.imaging import lesion as lesions
from willis.imaging.lesion import Facts, Signals
from willis.imaging.prepare import codes_of, template_brain
from willis.imaging.territory import default_map
from willis.reports.slices import SHOWN

UInt8 = npt.NDArray[np.uint8]

ACUTE, OLD, WHITE = 1, 2, 4
"""Bits of a truth voxel: acute infarct, old infarct, white-matter hyperintensity."""

_SHAPE = GRID.shape
_BYTES_PER_STUDY = int(np.prod(_SHAPE)) * (len(SHOWN) + 1)
_SOURCES = (Path(__file__), *(Path(__file__).parents[1] / "cohort" / f"{name}.py" for name in (
    "anatomy", "lesions", "patients", "physics", "render",
)))  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    num_studies: int
    seed: int


@dataclass(frozen=True, eq=False)
class ReaderStudies:
    """Rendered studies, memory-mapped.

    Attributes:
        codes: (N, 3, X, Y, Z) uint8, DWI, ADC and FLAIR as `imaging.shards` codes them.
        truth: (N, X, Y, Z) uint8, bits ACUTE, OLD and WHITE.
        facts: of the true acute infarct.
    """

    codes: UInt8
    truth: UInt8
    facts: tuple[Facts, ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `make_reader_studies` wrote."""
        lines = [(folder / "facts" / f"{n}.json").read_text() for n in range(len(_mapped(folder, "truth")))]
        facts = tuple(Facts.model_validate_json(line) for line in lines)
        return cls(_mapped(folder, "codes"), _mapped(folder, "truth"), facts)


@dataclass(frozen=True)
class _Job:
    folder: Path
    number: int
    seed: int
    without_infarct: float


def make_reader_studies(
    out: Path, num_studies: int, seed: int, without_infarct: float, num_workers: int = 0
) -> ReaderStudies:
    """Render the studies once; a killed run goes on where it stopped.

    Args:
        out: folder; left as it is when it holds the same studies.
        num_studies: how many.
        seed: of everything; no cohort draws from the same streams.
        without_infarct: share of negative studies.
        num_workers: processes; 0 means one per core.

    Raises:
        CohortError: `out` holds something else, or the disk is full.
    """
    asked = {"num_studies": num_studies, "seed": seed, "without_infarct": without_infarct}
    plan = plan_of(asked, _SOURCES)
    record = Path("studies.json")
    if finished(out, record, plan, _Record) is None:
        with staged(out, plan, num_bytes=num_studies * _BYTES_PER_STUDY) as partial:
            _allocate(partial, num_studies)
            jobs = [
                _Job(partial, n, seed, without_infarct)
                for n in range(num_studies)
                if not (partial / "facts" / f"{n}.json").exists()
            ]
            work(_make, jobs, len, None, num_workers, title="rendering studies for the reader")
            done = _Record(num_studies=num_studies, seed=seed)
            whole = {"plan": plan.model_dump(mode="json"), "summary": done.model_dump()}
            (partial / record).write_text(json.dumps(whole))
    return ReaderStudies.open(out)


def _allocate(folder: Path, num_studies: int) -> None:
    (folder / "facts").mkdir(exist_ok=True)
    for name, shape in (("codes", (num_studies, len(SHOWN), *_SHAPE)), ("truth", (num_studies, *_SHAPE))):
        if not (folder / f"{name}.npy").exists():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)


def _mapped(folder: Path, name: str, mode: Any = "r") -> UInt8:
    mapped: UInt8 = np.load(folder / f"{name}.npy", mmap_mode=mode)
    return mapped


def _make(job: _Job) -> None:
    """Render one study; its facts come last and say that it is whole."""
    rng = np.random.default_rng([job.seed, job.number, 0x5EAD])
    image, _ = draw(rng, 1, load_library(), job.without_infarct)
    study = render(rng, image, random_scanner(rng))
    _mapped(job.folder, "codes", "r+")[job.number] = study_codes(study)
    truth = ACUTE * study.lesion + OLD * study.old + WHITE * study.hyperintensity
    _mapped(job.folder, "truth", "r+")[job.number] = truth
    unfinished = job.folder / "facts" / f".{job.number}"
    unfinished.write_text(true_facts(study).model_dump_json())
    unfinished.replace(job.folder / "facts" / f"{job.number}.json")


def random_scanner(rng: np.random.Generator) -> Scanner:
    """Draw a scanner; the ranges hold those of the cohorts and reach beyond."""
    return Scanner(
        name="reader",
        site="reader",
        tesla=float(rng.choice([1.5, 3.0])),
        snr_dwi=rng.uniform(11, 34),
        snr_flair=rng.uniform(12, 42),
        te_dwi_ms=rng.uniform(65, 118),
        te_flair_ms=rng.uniform(85, 165),
        ti_ms=rng.uniform(2150, 2560),
        tr_ms=rng.uniform(7000, 10000),
        bias=rng.uniform(0.03, 0.20),
        slice_blur=rng.uniform(0.2, 0.9),
        b_error=float(np.clip(rng.normal(0, 0.04), -0.08, 0.12)),
        gain_dwi=float(np.exp(rng.uniform(7, 9))),
        gain_flair=float(np.exp(rng.uniform(7, 9))),
    )


def study_codes(study: RenderedStudy) -> UInt8:
    """Code a rendered study as `ingest` would, (3, X, Y, Z)."""
    brain = template_brain(GRID) & (study.dwi > 0)
    volumes = {
        "dwi": study.dwi.astype(np.float32),
        "adc": study.adc.astype(np.float32) * np.float32(1e-6),
        "flair": study.flair.astype(np.float32),
    }
    return np.stack([codes_of(volumes[name], brain, name, GRID) for name in SHOWN])


def true_facts(study: RenderedStudy) -> Facts:
    """Measure the true infarct as ingest measures a found one."""
    mask = study.lesion > 0
    found = lesions.gather(mask, GRID.affine, GRID.voxel_ml, 0.0)
    if found.num_components == 0:
        return lesions.measure(found, default_map(), Signals())
    brain = study.dwi > 0
    ratios = [
        lesions.mirrored_ratio(values.astype(np.float32), mask, brain) for values in (study.dwi, study.flair)
    ]
    mean_adc = float(study.adc[mask].mean()) * 1e-6
    return lesions.measure(found, default_map(), Signals(mean_adc, *ratios))
