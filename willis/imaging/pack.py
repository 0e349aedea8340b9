"""All studies of a cohort into shards: prepared in processes, kept in order, the broken ones with reasons."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from willis.cohort.bids import LeftOut, StudyFiles
from willis.errors import StepError, StudyError
from willis.imaging.lesion import Facts
from willis.imaging.prepare import AdcUnit, PreparedStudy, prepare_study
from willis.imaging.shards import NUM_PLANES, PLANE_SIZE, ShardWriter
from willis.params import IngestParams

IN_FLIGHT_PER_WORKER = 4
STUDIES_PER_WORKER = 8
"""A process costs two seconds of imports: not worth it for fewer."""


@dataclass(frozen=True)
class _Work:
    """One study for one process."""

    files: StudyFiles
    params: IngestParams


@dataclass(frozen=True, eq=False)
class _Done:
    """What came of it: a study or the reason why not, and a digest of the files."""

    study: PreparedStudy | None
    reason: str
    sha256: str


@dataclass(frozen=True, eq=False)
class KeptStudy:
    """A study that is in the shards; everything but its arrays."""

    files: StudyFiles
    present: tuple[bool, ...]
    has_planes: bool
    facts: Facts
    quality: float
    adc_unit: AdcUnit | None
    warnings: tuple[str, ...]
    place: tuple[int, int]


def pack_studies(
    folder: Path, studies: list[StudyFiles], params: IngestParams
) -> tuple[list[KeptStudy], list[LeftOut], str]:
    """Prepare every study and append the usable ones to shards.

    Args:
        folder: gets volumes-NNN.npy and, where planes are configured, planes-NNN.npy.
        studies: in the order of the shards' rows.
        params: the section `ingest`.

    Returns:
        Kept studies in order, broken ones with reasons, and a digest of every file that was read.

    Raises:
        StepError: a process was killed.
        OSError: the disk is full.
    """
    volume_shape = (len(params.sequences), *params.shape)
    planes_shape = (NUM_PLANES * len(params.planes), PLANE_SIZE, PLANE_SIZE)
    kept: list[KeptStudy] = []
    rejected: list[LeftOut] = []
    digest = hashlib.sha256()
    with (
        ShardWriter(folder, "volumes", volume_shape, params.studies_per_shard) as volumes,
        ShardWriter(folder, "planes", planes_shape, params.studies_per_shard) as planes,
    ):
        for files, done in _prepared(studies, params):
            digest.update(f"{files.study_id} {done.sha256}\n".encode())
            if done.study is None:
                rejected.append(LeftOut(files.patient_id, files.study_id, done.reason))
            else:
                kept.append(_add(done.study, files, volumes, planes if params.planes else None))
    return kept, rejected, digest.hexdigest()


def _add(
    study: PreparedStudy, files: StudyFiles, volumes: ShardWriter, planes: ShardWriter | None
) -> KeptStudy:
    place = volumes.add(study.volume)
    if planes is not None:
        planes.add(study.planes)
    return KeptStudy(
        files=files,
        present=tuple(bool(p) for p in study.sequence_present),
        has_planes=study.planes_present,
        facts=study.facts,
        quality=study.registration_quality,
        adc_unit=study.adc_unit,
        warnings=study.warnings,
        place=place,
    )


def _prepared(studies: list[StudyFiles], params: IngestParams) -> Iterator[tuple[StudyFiles, _Done]]:
    """Prepare in processes, in order, with a progress bar and a bounded number in flight."""
    from rich.console import Console
    from rich.progress import track

    work = [_Work(files, params) for files in studies]
    done = track(
        _in_processes(work, _num_workers(params, len(work))),
        "Preparing studies",
        total=len(work),
        console=Console(stderr=True),
        transient=True,
    )
    yield from zip(studies, done, strict=True)


def _num_workers(params: IngestParams, num_studies: int) -> int:
    wanted = params.num_workers or len(os.sched_getaffinity(0))
    return min(wanted, max(1, num_studies // STUDIES_PER_WORKER))


def _in_processes(work: list[_Work], num_workers: int) -> Iterator[_Done]:
    if num_workers == 1:
        yield from map(_prepare, work)
        return
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting: deque[Future[_Done]] = deque()
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        for item in work:
            waiting.append(pool.submit(_prepare, item))
            if len(waiting) >= IN_FLIGHT_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise StepError(
            f"one of {num_workers} preparing processes was killed, as a rule for want of memory; "
            "run again with fewer (params.yaml: ingest.num_workers)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    """Threads of numerical libraries would fight over the cores that the processes already use."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def _prepare(work: _Work) -> _Done:
    digest = _digest(work.files)
    try:
        return _Done(prepare_study(work.files, work.params), "", digest)
    except StudyError as error:
        return _Done(None, str(error), digest)


def _digest(files: StudyFiles) -> str:
    digest = hashlib.sha256()
    paths = [path for _, path in files.volumes()] + [p for p in (files.planes, files.atlas) if p is not None]
    for path in paths:
        digest.update(path.name.encode())
        if path.is_file():
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
