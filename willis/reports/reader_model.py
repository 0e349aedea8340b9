"""The embedded reader: a small Idefics3 that vLLM and transformers load as they load any other.

A vision transformer reads each picture on its own; 7 x 7 of its patches are folded into one token, four per
picture, and a small Llama reads the tokens between the words of the prompt and writes the report.

Reference: the architecture is Idefics3's (arXiv 2408.12637), at a two-thousandth of its size.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from willis.errors import ReportError
from willis.reports.slices import PICTURE_PX

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Idefics3ForConditionalGeneration

PATCH_PX = 8
FOLD = 7
TOKENS_PER_PICTURE = (PICTURE_PX // PATCH_PX // FOLD) ** 2
MAX_TOKENS = 2048
VOCABULARY = 1024
VISION_WIDTH, WIDTH = 96, 128
MEAN = SD = 0.5
"""Of the pixels, 0 to 1."""
EMBEDDING_SD = 0.1

PAD, START, END = "<pad>", "<report>", "<end_of_utterance>"
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
SPECIAL = (PAD, START, END, FAKE, GLOBAL, IMAGE)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}" + IMAGE + "{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}" + START
)
"""The instruction is left out: the reader has learned it."""

# A label, a further item of a list, a JSON key with what closes the value before and opens its own, a word
# with underscores, a word, a digit, anything else. A list is copied item by item where items are one piece.
_PIECES = (
    r"axial, z [+-]\d+ mm, [A-Z/]+|\w+ plane, FLAIR|Measured from the volumes: |Write the report\."
    r'|","[a-z0-9_]+(?="[,\]])|"?\]?[{,]?"[a-z0-9_\-]+":["\[]*'
    r"|[A-Za-z0-9]*_[A-Za-z0-9_]*| ?[A-Za-z\-]+|\d|[^A-Za-z0-9]"
)


def train_tokenizer(texts: Iterable[str]) -> "Tokenizer":
    """Learn a byte-level BPE on prompts and reports; digits stay single, so that numbers can be copied."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_ids(tokenizer: "Tokenizer") -> dict[str, int]:
    """Return the ids of the tokens that frame a prompt.

    Raises:
        ReportError: the tokenizer is not one of `train_tokenizer`.
    """
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    known = {name: number for name, number in ids.items() if number is not None}
    if len(known) < len(SPECIAL):
        raise ReportError(f"the tokenizer lacks {sorted(set(SPECIAL) - set(known))}")
    return known


def new_reader(tokenizer: "Tokenizer") -> "Idefics3ForConditionalGeneration":
    """Make the network with random weights."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    token = special_ids(tokenizer)
    vision = {
        "hidden_size": VISION_WIDTH, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": PICTURE_PX, "patch_size": PATCH_PX,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": token[START], "eos_token_id": token[END], "pad_token_id": token[PAD],
        "tie_word_embeddings": True,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=FOLD,
        image_token_id=token[IMAGE],
        tie_word_embeddings=True,
    )
    config.pad_token_id = token[PAD]
    model = Idefics3ForConditionalGeneration(config)
    # left and right occur in the same places: from small random vectors they would become one
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_SD)
    return model


def save_reader(folder: Path, model: "Idefics3ForConditionalGeneration", tokenizer: "Tokenizer") -> None:
    """Write everything that vLLM and transformers need to load the reader by its folder."""
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[FAKE, GLOBAL, IMAGE],
        model_max_length=MAX_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    _write(folder / "preprocessor_config.json", _preprocessor())
    _write(
        folder / "processor_config.json",
        {"processor_class": "Idefics3Processor", "image_seq_len": TOKENS_PER_PICTURE},
    )


def _preprocessor() -> dict[str, Any]:
    """Pictures arrive at their size: nothing is resized or tiled."""
    return {
        "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
        "do_convert_rgb": True, "do_resize": False, "do_image_splitting": False, "do_pad": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [MEAN] * 3, "image_std": [SD] * 3,
        "size": {"longest_edge": PICTURE_PX}, "max_image_size": {"longest_edge": PICTURE_PX},
    }  # fmt: skip


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
