"""The text encoder: no network unless asked, no padding in the answer, nothing encoded twice."""

import socket
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.text_encoders import small_encoder
from willis.errors import ParamsError
from willis.models.text import MAX_STATES, TextEncoder, embed

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


def test_states_come_in_the_same_pass_and_their_mean_is_the_embedding(encoder: TextEncoder) -> None:
    texts = [TEXTS[0], TEXTS[1] * 2, TEXTS[2]]
    sentence, states = encoder.encode_tokens(texts)
    np.testing.assert_array_equal(sentence, encoder.encode(texts))
    assert states.values.dtype == np.float16 and states.values.shape == (3, MAX_STATES, 384)
    assert states.real.sum(axis=1).tolist()[1:] == [MAX_STATES, 8]  # [CLS] no acute inf ##ar ##ct . [SEP]
    for row in (0, 2):
        mean = states.values[row][states.real[row]].astype(np.float32).mean(axis=0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), sentence[row], atol=1e-3)


def test_states_are_cached_beside_the_embedding_and_an_embedding_alone_is_not_enough(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    first = TextEncoder.load(cache=tmp_path)
    first._parts = encoder._loaded()
    first.encode(TEXTS)
    assert len(list(tmp_path.iterdir())) == 3
    sentence, states = first.encode_tokens(TEXTS)
    again = TextEncoder.load(cache=tmp_path)
    np.testing.assert_array_equal(again.encode_tokens(TEXTS)[1].values, states.values)
    np.testing.assert_array_equal(again.encode(TEXTS), sentence)
    assert again._parts is None and len(list(tmp_path.iterdir())) == 6


def test_a_case_without_a_report_has_no_token(encoder: TextEncoder) -> None:
    read = embed(encoder, [None, TEXTS[2], None], 384, tokens=True)
    assert read.tokens.real.any(axis=1).tolist() == [False, True, False]
    assert not read.tokens.values[~read.tokens.real].any() and not read.sentence[[0, 2]].any()
    nobody = embed(encoder, [None, None], 384, tokens=True)
    assert nobody.tokens.real.shape == (2, 1) and not nobody.tokens.real.any()


def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_an_unknown_encoder_is_refused_with_what_is_possible() -> None:
    with pytest.raises(
        ParamsError, match=r"train.text_encoder is 'BioBERT', .* it must be 'all-MiniLM-L6-v2'"
    ):
        TextEncoder.load("BioBERT")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_with_an_encoder_of_another_width_says_its_width(tmp_path: Path) -> None:
    encoder = TextEncoder.load(str(small_encoder(tmp_path)))
    sentence, states = encoder.encode_tokens(TEXTS)
    assert encoder.width == sentence.shape[1] == states.values.shape[2] == 32
    assert encoder.encode([]).shape == (0, 32)


def test_other_weights_in_the_same_folder_are_not_answered_from_the_cache(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path / "encoder")
    first = TextEncoder.load(str(folder), tmp_path / "cache").encode(TEXTS)
    small_encoder(folder, seed=1)
    second = TextEncoder.load(str(folder), tmp_path / "cache").encode(TEXTS)
    assert np.abs(first - second).max() > 0.01


def test_an_encoder_of_the_hub_is_read_from_its_cache_by_name_and_commit(
    hub_cache: Path, tmp_path: Path
) -> None:
    snapshot = small_encoder(hub_cache / "models--org--small" / "snapshots" / COMMIT)
    found = TextEncoder.load(f"org/small@{COMMIT}").encode(TEXTS)
    np.testing.assert_array_equal(found, TextEncoder.load(str(snapshot)).encode(TEXTS))


@pytest.mark.parametrize("download", [False, True])
def test_an_encoder_of_the_hub_that_cannot_be_had_says_how_to_fetch_it(
    hub_cache: Path, download: bool
) -> None:
    with pytest.raises(ParamsError, match=f"hf download org/small --revision {COMMIT}"):
        TextEncoder.load(f"org/small@{COMMIT}", download=download)


def test_an_encoder_of_the_hub_without_a_commit_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"ORG/MODEL@COMMIT .* 40 digits of a commit"):
        TextEncoder.load("org/small")


def test_a_folder_whose_config_names_no_encoder_is_refused(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path)
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ParamsError, match=r"config.json is not of an encoder that transformers knows"):
        TextEncoder.load(str(folder))
