"""Weights on disk: a safetensors file that appears whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from willis.errors import StepError

if TYPE_CHECKING:
    from torch import Tensor


def save_weights(
    weights: "Mapping[str, Tensor]", path: Path, command: str, metadata: dict[str, str] | None = None
) -> None:
    """Write weights; an earlier file stays until the new one is whole.

    Args:
        weights: on any device.
        path: of the file.
        command: what to run again once there is space; it must lose nothing.
        metadata: kept in the file's header. Several keys would be written in any order, and the digest would
            change with it.

    Raises:
        StepError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial, metadata
        )
    except (SafetensorError, OSError) as error:  # safetensors wraps a full disk in an error of its own
        partial.unlink(missing_ok=True)
        raise StepError(
            f"{path} cannot be written: {error}; free some space and run `{command}` again, nothing is "
            "trained twice"
        ) from error
    partial.replace(path)
