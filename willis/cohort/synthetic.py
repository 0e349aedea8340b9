"""The synthetic cohort on disk: a BIDS tree and its truth.

The bytes depend on the parameters and on the code alone, not on the number of workers; the folder is whole or
not there (staging.py).
"""

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from willis.cohort.anatomy import TERRITORIES
from willis.cohort.ceiling import Ceilings, ceilings, given_image, given_table, make_support
from willis.cohort.clinic import MISSING, Visit, column_descriptions, participant, visit
from willis.cohort.crew import work
from willis.cohort.lesions import GRID, load_library
from willis.cohort.outcome import draw_mrs, eta
from willis.cohort.patients import Image, Table, draw, each, join, sigmoid
from willis.cohort.physics import SCANNERS, scanner_named
from willis.cohort.render import Study, render
from willis.cohort.staging import finished, plan_of, staged
from willis.errors import CohortError
from willis.params import CohortParams

Purpose = Literal["evaluation", "reader", "benchmark", "stream"]

SPACE = "space-MNI152NLin2009a"
TRUTH = Path("derivatives", "truth")
_SUMMARY = TRUTH / "cohort.json"
_SEEDS = ("patient", "outcome", "visit", "gaps", "image")
_BYTES_PER_PATIENT = 1_000_000
_MODULES = (
    "anatomy", "ceiling", "clinic", "lesions", "oracle",
    "outcome", "patients", "physics", "render", "synthetic",
)  # fmt: skip
_SOURCES = (*(f"cohort/{name}.py" for name in _MODULES), "imaging/grid.py", "imaging/territory.py")
"""The code that decides the bytes."""


class CohortSummary(BaseModel):
    """What `synthesise` made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_patients: int
    num_with_outcome: int
    num_with_infarct: int
    poor_share: float
    median_volume_ml: float
    preset: str
    purpose: Purpose
    seed: int
    scanners: tuple[str, ...]
    size_bytes: int
    ceilings: Ceilings | None


@dataclass(frozen=True)
class Patients:
    """All patients before their images: latents, outcome, visits, ids."""

    ids: tuple[str, ...]
    image: Image
    table: Table
    log_odds: npt.NDArray[np.float64]
    mrs_90d: npt.NDArray[np.int64]
    visits: tuple[Visit, ...]
    rows: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Job:
    """One patient's images to be made: where, who, what they must show."""

    folder: Path
    patient_id: str
    seed: tuple[int, ...]
    image: Image
    scanner: str


def synthesise(out: Path, params: CohortParams, *, purpose: str = "evaluation") -> CohortSummary:
    """Make the synthetic cohort.

    Args:
        out: folder to make; nothing may stand there except the same cohort, which is then left as it is.
        params: size, seed, preset, scanners, share without infarct, processes.
        purpose: `evaluation`; `reader` or `benchmark`, whose truth may be trained on; `stream`, whose patient
            ids differ from those of other cohorts. Ceilings belong to evaluation and benchmark.

    Returns:
        Counts, prevalence and the ceilings.

    Raises:
        CohortError: `out` is taken, another run is writing it, or the disk is full.
        ParamsError: a scanner is not known.
    """
    chosen = _purpose(purpose)
    for name in params.scanners:
        scanner_named(name)
    out = out.resolve()
    asked = params.model_dump(mode="json", exclude={"num_workers"}) | {"purpose": chosen}
    plan = plan_of(asked, (Path(__file__).parents[1] / name for name in _SOURCES))
    done = finished(out, _SUMMARY, plan, CohortSummary)
    if done is not None:
        return done
    with staged(out, plan, num_bytes=params.num_patients * _BYTES_PER_PATIENT) as partial:
        summary = _build(partial, params, chosen)
        record = {"plan": plan.model_dump(mode="json"), "summary": summary.model_dump(mode="json")}
        _write_json(partial / _SUMMARY, record)
    return summary


def _purpose(name: str) -> Purpose:
    for known in get_args(Purpose):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise CohortError(f"purpose is {name!r}; it must be one of {', '.join(get_args(Purpose))}")


def draw_patients(params: CohortParams, purpose: Purpose = "evaluation") -> Patients:
    """Draw all patients; each from its own stream, so a larger cohort begins with the smaller one."""
    library = load_library()
    scanners = tuple(scanner_named(name) for name in params.scanners)
    ids, images, tables, visits, grades, odds, rows = [], [], [], [], [], [], []
    for number in range(params.num_patients):
        rng = {name: _stream(params.seed, number, name) for name in _SEEDS}
        image, table = draw(rng["patient"], 1, library, params.without_infarct)
        log_odds = eta(table, image, params.preset)
        ids.append(_patient_id(number, params, purpose))
        images.append(image)
        tables.append(table)
        odds.append(log_odds)
        grades.append(draw_mrs(rng["outcome"], log_odds))
        visits.append(visit(rng["visit"], table, image, scanners))
        rows.append(participant(rng["gaps"], ids[-1], table, visits[-1], int(grades[-1][0])))
    latents = join(images), join(tables), np.concatenate(odds), np.concatenate(grades)
    return Patients(tuple(ids), *latents, tuple(visits), tuple(rows))


def _stream(seed: int, number: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, number, _SEEDS.index(name)])


def _patient_id(number: int, params: CohortParams, purpose: Purpose) -> str:
    # evaluation cohorts are sub-0001 and so on; the others must not be taken for the same people
    prefix = "" if purpose == "evaluation" else f"{purpose}{params.seed}n"
    return f"sub-{prefix}{number + 1:04d}"


def _build(partial: Path, params: CohortParams, purpose: Purpose) -> CohortSummary:
    patients = draw_patients(params, purpose)
    jobs = [
        Job(partial, patient_id, (params.seed, number, _SEEDS.index("image")), image, seen.scanner.name)
        for number, (patient_id, image, seen) in enumerate(
            zip(patients.ids, each(patients.image), patients.visits, strict=True)
        )
        if not (partial / patient_id).is_dir()
    ]
    wanted = purpose in ("evaluation", "benchmark")
    bounds = (params.preset, params.without_infarct, params.ceiling_draws) if wanted else None
    found = work(make_patient, jobs, _bounds, bounds, params.num_workers, title="making patients")
    _write_tables(partial, patients, params, purpose)
    _write_truth(partial, patients, params, found)
    return CohortSummary(
        num_patients=params.num_patients,
        num_with_outcome=sum(row["mrs_90d"] != MISSING for row in patients.rows),
        num_with_infarct=int((patients.image.infarct > 0).sum()),
        poor_share=round(float((patients.mrs_90d >= 3).mean()), 4),
        median_volume_ml=round(float(np.median(patients.image.volume_ml)), 3),
        preset=params.preset,
        purpose=purpose,
        seed=params.seed,
        scanners=params.scanners,
        size_bytes=sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()),
        ceilings=found,
    )


def _bounds(arguments: tuple[Any, float, int]) -> Ceilings:
    preset, without_infarct, num_draws = arguments
    return ceilings(preset, without_infarct=without_infarct, num_draws=num_draws)


# ---- one patient ----


def make_patient(job: Job) -> str:
    """Render one patient and put the files in place; the patient's folder comes last and whole."""
    study = render(np.random.default_rng(job.seed), job.image, SCANNERS[job.scanner])
    hidden = job.folder / f".{job.patient_id}"
    truth = job.folder / TRUTH / job.patient_id
    for folder in (hidden, truth):
        shutil.rmtree(folder, ignore_errors=True)
    for path, values in _files(job.patient_id, study):
        _write_nifti(hidden / path, values)
    mask = f"{job.patient_id}_{SPACE}_desc-lesion_mask.nii.gz"
    _write_nifti(truth / mask, study.lesion)
    hidden.rename(job.folder / job.patient_id)
    return job.patient_id


def _files(patient_id: str, study: Study) -> Iterator[tuple[Path, npt.NDArray[np.int16]]]:
    stem = f"{patient_id}_{SPACE}"
    yield Path("dwi", f"{stem}_dwi.nii.gz"), study.dwi
    yield Path("dwi", f"{stem}_adc.nii.gz"), study.adc
    yield Path("anat", f"{stem}_FLAIR.nii.gz"), study.flair


def _write_nifti(path: Path, values: npt.NDArray[Any]) -> None:
    """Write a gzipped NIfTI with no time stamp in it: same values, same bytes."""
    import nibabel as nib

    image: Any = nib.Nifti1Image(values, GRID.affine)
    image.set_qform(GRID.affine, code=4)
    image.set_sform(GRID.affine, code=4)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


# ---- tables ----


def _write_tables(partial: Path, patients: Patients, params: CohortParams, purpose: Purpose) -> None:
    lines = ["\t".join(patients.rows[0]), *("\t".join(row.values()) for row in patients.rows)]
    (partial / "participants.tsv").write_text("\n".join(lines) + "\n")
    _write_json(partial / "participants.json", column_descriptions())
    described = {
        "Name": "Willis synthetic stroke cohort",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "willis cohort synthesise"}],
        "Willis": {"source": "synthetic", "purpose": purpose, "seed": params.seed, "preset": params.preset},
    }
    _write_json(partial / "dataset_description.json", described)
    (partial / "README").write_text(_README)


_README = """Synthetic stroke patients made by Willis: synthetic lesions in real adult anatomy (ICBM152).
No person stands behind any row. ADC is in 1e-6 mm^2/s; DWI (b = 1000 s/mm^2) and FLAIR have arbitrary units.
Brains only, MNI space, 2 x 2 x 4 mm. derivatives/truth/ holds the answers: only an evaluation may read it.
"""


def _write_truth(partial: Path, patients: Patients, params: CohortParams, found: Ceilings | None) -> None:
    import pandas as pd
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    folder = partial / TRUTH
    folder.mkdir(parents=True, exist_ok=True)
    image, table = patients.image, patients.table
    with threadpool_limits(1):  # the same sums in the same order, whatever the machine
        support = make_support(params.preset, params.without_infarct)
        p_image, p_table = given_image(support, image), given_table(support, table)
    columns: dict[str, Sequence[Any] | npt.NDArray[Any]] = {
        "patient_id": list(patients.ids),
        "p_poor": sigmoid(patients.log_odds),
        "p_image": p_image,
        "p_table": p_table,
        "mrs_90d": patients.mrs_90d,
        "infarct": image.infarct > 0,
        "territory": [TERRITORIES[k] for k in image.territory],
        "side": np.where(image.left, "left", "right"),
        "nihss": table.nihss,
    }
    for name in ("volume_ml", "num_lesions", "tract", "eloquence", "white_ml", "atrophy", "old_ml"):
        columns[name] = getattr(image, name)
    columns |= {"haemorrhage": image.haemorrhage, "onset_to_scan_h": image.onset_to_scan_h}
    pd.DataFrame(columns).to_parquet(folder / "truth.parquet", index=False)
    if found is not None:
        _write_json(folder / "ceilings.json", found.model_dump())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
