"""Where the demo's patients come from: synthesis, the derived SOOP set, or the user's own BIDS tree."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from infra.local.stages import folder_made, key_of
from willis.cohort.table import SOOP_COLUMNS, SOOP_IGNORED
from willis.errors import ParamsError
from willis.params import Params, parse_section
from willis.provenance import cohort_digest, module_digests

NUM_STREAM = 80
NEW_SCANNER = "new"


class LastSource(BaseModel):
    """What `make serve` needs of the last demo."""

    model_config = ConfigDict(frozen=True)

    params: Params
    stream: Path
    ingested: Path
    atlas: Path | None


def atlas_of(cohort: Path) -> Path | None:
    """The arterial atlas that a cohort brings along, if any."""
    return next(iter(sorted((cohort / "derivatives" / "atlas").glob("*.nii.gz"))), None)


@dataclass(frozen=True)
class Source:
    """The patients of one demo.

    Attributes:
        title: for people.
        cohort: where the canonical cohort is or will be.
        params: the parameters, adapted to what the source has.
        make: makes the cohort; True if it was there already.
        streams: name -> function that makes the stream's cohort and returns it; None where the source has no
            such stream, with the reason in `absent`.
        absent: what this source cannot have, with reasons.
    """

    title: str
    cohort: Path
    params: Params
    make: Callable[[], bool]
    streams: dict[str, Callable[[], Path] | None]
    absent: dict[str, str]


def source_of(
    data: str, root: Path, params: Params, num_patients: int | None = None, num_stream: int = NUM_STREAM
) -> Source:
    """Read the DATA word of the command line.

    Raises:
        ParamsError: an unknown kind or a folder that is not there.
    """
    kind, _, path = data.partition(":")
    if kind == "synthetic" and not path:
        return _synthetic(root, params, num_patients, num_stream)
    folder = Path(path).expanduser().resolve()
    if kind not in ("soop", "bids") or not path:
        raise ParamsError(f"DATA is {data!r}; it must be synthetic, soop:PATH or bids:PATH")
    if not folder.is_dir():
        raise ParamsError(f"DATA is {data!r}; {folder} is not a folder")
    return _soop(folder, root, params) if kind == "soop" else _bids(folder, root, params)


def _synthetic(root: Path, params: Params, num_patients: int | None, num_stream: int) -> Source:
    from willis.cohort.synthetic import synthesise

    cohort = params.cohort
    if num_patients is not None:
        cohort = parse_section(
            type(cohort), {**cohort.model_dump(), "num_patients": num_patients}, "--patients"
        )
    code = module_digests("willis.cohort.synthetic")

    def make(folder: Path, purpose: str, **changes: object) -> bool:
        section = parse_section(type(cohort), {**cohort.model_dump(), **changes}, "the demo")
        key = key_of(section.model_dump(), purpose, code)
        return folder_made(folder, key, lambda: synthesise(folder, section, purpose=purpose))

    def stream(name: str, **changes: object) -> Callable[[], Path]:
        def made() -> Path:
            make(root / f"stream-{name}", "stream", num_patients=num_stream, **changes)
            return root / f"stream-{name}"

        return made

    return Source(
        title=f"{cohort.num_patients} synthetic patients (synthetic lesions in real anatomy)",
        cohort=root / "cohort",
        params=params.model_copy(update={"cohort": cohort}),
        make=lambda: make(root / "cohort", "evaluation"),
        streams={
            "ordinary": stream("ordinary", seed=cohort.seed + 1),
            "new_scanner": stream("new_scanner", seed=cohort.seed + 2, scanners=(NEW_SCANNER,)),
        },
        absent={},
    )


def _soop(folder: Path, root: Path, params: Params) -> Source:
    from willis.cohort.soop import import_soop

    ingest = params.ingest.model_copy(
        update={
            "sequences": ("lesion",),
            "planes": ("flair",),
            "outcome_column": "mrs",
            "columns": {**SOOP_COLUMNS, **params.ingest.columns},
            "ignored_columns": (*SOOP_IGNORED, *params.ingest.ignored_columns),
        }
    )
    cohort = root / "cohort-soop"
    key = key_of(str(folder), cohort_digest(folder), module_digests("willis.cohort.soop"))
    return Source(
        title=f"the real patients of {folder.name} (SOOP, derived)",
        cohort=cohort,
        params=params.model_copy(update={"ingest": ingest}),
        make=lambda: folder_made(cohort, key, lambda: import_soop(folder, cohort)),
        streams={"ordinary": lambda: cohort, "new_scanner": None},
        absent={
            "ceiling": "real patients: nobody knows their true probabilities",
            "new_scanner": "the derived SOOP set does not name its scanners",
        },
    )


def _bids(folder: Path, root: Path, params: Params) -> Source:
    from willis.cohort.bids_import import import_bids

    cohort = root / "cohort-bids"
    key = key_of(str(folder), cohort_digest(folder), module_digests("willis.cohort.bids_import"))
    return replace(
        _soop(folder, root, params),
        title=f"the BIDS tree {folder.name}",
        cohort=cohort,
        params=params,
        make=lambda: folder_made(cohort, key, lambda: import_bids(folder, cohort)),
        streams={"ordinary": lambda: cohort, "new_scanner": None},
        absent={
            "ceiling": "real patients: nobody knows their true probabilities",
            "new_scanner": "a BIDS tree of one's own holds no scanner that training never saw",
        },
    )
