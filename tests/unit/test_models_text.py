"""The packaged text encoder: no network, no padding in the answer, nothing encoded twice."""

import socket
from pathlib import Path

import numpy as np
import pytest

from willis.errors import ParamsError
from willis.models.text import TextEncoder

TEXTS = [
    "Acute infarct in the left middle cerebral artery territory, 12 ml.",
    "Acute infarct of 12 ml, left MCA territory, with low ADC. " * 6,
    "No acute infarct.",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load()


def test_embeddings_need_no_network_and_are_unit_vectors(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the text encoder opened a connection to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    embeddings = encoder.encode(TEXTS)
    assert embeddings.shape == (3, 384) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)


def test_an_embedding_does_not_depend_on_its_neighbours(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_similarities_are_those_that_the_encoder_is_published_with(encoder: TextEncoder) -> None:
    """The three pairs of the sentence-transformers documentation for all-MiniLM-L6-v2."""
    left = ["The cat sits outside", "A man is playing guitar", "The new movie is awesome"]
    right = ["The dog plays in the garden", "A woman watches TV", "The new movie is so great"]
    similarity = (encoder.encode(left) * encoder.encode(right)).sum(axis=1)
    np.testing.assert_allclose(similarity, [0.2838, -0.0327, 0.8939], atol=2e-3)


def test_a_cached_text_is_not_encoded_again(encoder: TextEncoder, tmp_path: Path) -> None:
    first = TextEncoder.load(cache=tmp_path)
    first._parts = encoder._loaded()
    embeddings = first.encode([TEXTS[0], TEXTS[2], TEXTS[0]])
    second = TextEncoder.load(cache=tmp_path)
    np.testing.assert_array_equal(second.encode([TEXTS[0], TEXTS[2], TEXTS[0]]), embeddings)
    assert second._parts is None and len(list(tmp_path.iterdir())) == 2


def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_an_unknown_encoder_is_refused_with_what_is_possible() -> None:
    with pytest.raises(ParamsError, match=r"train.text_encoder is 'BioBERT'; it must be 'all-MiniLM-L6-v2'"):
        TextEncoder.load("BioBERT")
