"""Weights of a pre-trained volume encoder on disk: what `pretrain` writes and `train` starts from."""

import hashlib
import json
from pathlib import Path

from willis.errors import BundleError, StepError
from willis.models.vision import VolumeEncoder
from willis.models.weights import save_weights

ENCODER, SUMMARY = "encoder.safetensors", "pretrain.json"
LAST_MAP = "body.pool."  # to the network's width: the network's own, whatever the width


def pretrained_weights(folder: Path) -> Path | None:
    """Where the weights of a pre-training lie; None where its method was none.

    Args:
        folder: output of `pretrain`.

    Raises:
        StepError: the step has not finished.
    """
    if not (folder / SUMMARY).is_file():
        raise StepError(f"{folder / SUMMARY} is missing; run `willis pretrain` first")
    return folder / ENCODER if json.loads((folder / SUMMARY).read_text())["method"] != "none" else None


def save_encoder(encoder: VolumeEncoder, path: Path, method: str) -> None:
    """Write everything of an encoder but its last map; the file appears whole or not at all.

    Raises:
        StepError: the disk is full or not writable.
    """
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith(LAST_MAP)}
    save_weights(state, path, "willis pretrain", {"encoder": json.dumps(_told(encoder, method))})


def load_encoder(encoder: VolumeEncoder, path: Path) -> None:
    """Start an encoder, templates included, from the weights in a file; its last map stays as it is.

    Raises:
        BundleError: the file is damaged, or of an encoder of another kind, other sequences or another grid.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("encoder", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}; run `willis pretrain` again") from None
    name = told.get("image_encoder", "cnn")  # the only one there was when files did not say
    if name != encoder.name:
        raise BundleError(
            _misfit(path, f"{name!r} (pretrain.image_encoder)", f"{encoder.name!r} (train.image_encoder)")
        )
    sequences = tuple(told.get("sequences", ()))
    if sequences != encoder.sequences:
        raise BundleError(_misfit(path, f"sequences {sequences}", f"{encoder.sequences}"))
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith(LAST_MAP)}
    for name in sorted(own.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "nothing"
        expected = tuple(own[name].shape) if name in own else "nothing"
        if found != expected:
            raise BundleError(_misfit(path, f"{found} for {name}", f"{expected}"))
    encoder.load_state_dict(state, strict=False)


def file_sha256(path: Path) -> str:
    """Digest of a file of weights.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); run `willis pretrain` again") from None


def _told(encoder: VolumeEncoder, method: str) -> dict[str, object]:
    return {"method": method, "image_encoder": encoder.name, "sequences": encoder.sequences}


def _misfit(path: Path, found: str, expected: str) -> str:
    return (
        f"{path} is of another architecture: it holds {found}, the network to train has {expected}; run "
        "`willis pretrain` on the same ingest and encoder, or set params.yaml: pretrain.method to none"
    )
