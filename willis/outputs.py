"""What a step writes: a folder appears whole, or what stood there stays as it was."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from willis.errors import StepError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A disk, a quota or a limit on the size of a file is used up."""


@contextmanager
def whole_folder(out: Path, record: str) -> Iterator[Path]:
    """Give a hidden folder to build in; put it in the place of `out` if the block ends well.

    An earlier output that a killed run had moved aside comes back before anything else.

    Args:
        out: where the whole folder goes.
        record: the file that every finished output of this step holds; a folder with other files and without
            it is somebody else's and is not replaced.

    Raises:
        StepError: no space left, or `out` holds something else.
    """
    out = out.absolute()
    _restore(out)
    check_replaceable(out, record)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        _swap(part, out)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StepError(_no_space(out, error)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_replaceable(out: Path, record: str) -> None:
    """Refuse to write over anything but an earlier output of the same step.

    Raises:
        StepError: `out` is a file, or a folder with files and without `record`.
    """
    if out.is_file():
        raise StepError(f"{out} is a file; this step writes a folder: give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / record).is_file():
        raise StepError(
            f"{out} holds files that this step did not write (there is no {record}); "
            "give an empty or a new folder (--out)"
        )


def _no_space(out: Path, error: OSError) -> str:
    free_mb = shutil.disk_usage(out.parent).free / 1e6
    return (
        f"writing {out} stopped ({error.strerror}; {free_mb:.0f} MB free); nothing of it was kept and an "
        "earlier output is untouched: free some space or give another --out"
    )


def _restore(out: Path) -> None:
    old = _aside(out)
    if old.is_dir() and not out.exists():
        old.rename(out)


def _swap(part: Path, out: Path) -> None:
    """Put the finished folder in place of the old one; a kill in between leaves the old one aside."""
    old = _aside(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")
