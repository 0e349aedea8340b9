"""Which model a name in `report.model` means: the packaged reader, a folder, or a Hugging Face name."""

import hashlib
from pathlib import Path

from willis.errors import StepError

NAME = "willis-reader"
"""What params.yaml calls the packaged reader."""
FOLDER = Path(__file__).parent / "reader"


def model_folder(model: str) -> Path | None:
    """Return the folder of a model; None for one that the server gets by its Hugging Face name.

    Raises:
        StepError: the packaged reader is not there.
    """
    folder = FOLDER if model == NAME else Path(model)
    if (folder / "config.json").is_file():
        return folder.resolve()
    if model == NAME:
        raise StepError(f"{folder} holds no model; make it with `willis reports train-reader`")
    return None


def model_files(folder: Path) -> list[Path]:
    """Return the files that decide what a model answers: all but its texts, *.md, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")


def served_name(model: str) -> str:
    """Name a model so that other weights have another name; a server of another version answers 404.

    A folder is named by its own name and a digest of its files, any other model by its Hugging Face name.

    Raises:
        StepError: the packaged reader is not there.
    """
    folder = model_folder(model)
    if folder is None:
        return model
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{NAME if model == NAME else folder.name}@{digest.hexdigest()[:12]}"
