"""Stage `text` of the transformer test-bed: its tokenizer, and a Qwen3 that knows the captions.

The tokenizer is a byte-level BPE with Qwen3's special tokens, built from the demo's captions: each
of their words is one token, and others are spelt in pieces. As with the other test-bed's CLIP,
linear heads read class, style and background off the states that the denoiser will see (three
layers side by side), at the end of the prompt and behind it; then they are thrown away, and the
encoder is frozen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from dit_shared import FAMILY, TEXT_HEAD, TEXT_LAYERS, TEXT_WIDTH, TOKENS, reader
from text import BATCH, SUFFIXES, labelled_captions, train_to_tell
from torch import Tensor
from world import art

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
PLACES = 6  # at which the heads read, of each caption
NOTHING = 0  # the place of <|endoftext|>, which pads


def build_tokenizer(folder: Path):
    """Build the tokenizer and write `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    captions, _ = labelled_captions(6000, np.random.default_rng(0))
    extra = ["user\n", "assistant\n", "\n\n", *art.CLASSES, *SUFFIXES]
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    found.train_from_iterator([*captions, *extra * 50], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token=SPECIAL[0], eos_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[1], *SPECIAL[3:]], model_max_length=TOKENS,
    )  # fmt: skip
    whole.save_pretrained(str(folder))
    return load_tokenizer(folder)


def load_tokenizer(folder: Path):
    """Load the tokenizer as the package does."""
    return FAMILY.networks.tokenizers((folder.parent,))[0]


def build(vocabulary: int):
    """Qwen3 without its head: 4 layers, 48 wide."""
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS, num_attention_heads=TEXT_WIDTH // TEXT_HEAD,
            num_key_value_heads=1, head_dim=TEXT_HEAD, max_position_embeddings=TOKENS,
            tie_word_embeddings=True, initializer_range=0.1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )  # fmt: skip


def train(folder: Path, tokenizer_folder: Path, steps: int = 700, seed: int = 0):
    """Pretrain and write `folder`."""
    torch.manual_seed(seed)
    rng, tokenizer = np.random.default_rng(seed), build_tokenizer(tokenizer_folder)
    encoder = build(len(tokenizer))
    model, width = reader(encoder, tokenizer), 3 * TEXT_WIDTH

    def read(captions: list[str]) -> Tensor:
        tokens = FAMILY.texts.tokenise(model, captions)
        hidden = FAMILY.texts.encode(model, tokens)["context"]
        # From the end of the user's words on, every state may know all of them
        end = (tokens[0] == tokenizer.convert_tokens_to_ids(SPECIAL[2])).int().argmax(1)[:, None]
        places = end + (torch.rand(BATCH, PLACES) * (TOKENS - end)).long()
        return hidden.gather(1, places[..., None].expand(-1, -1, width))

    train_to_tell(encoder, width, read, steps, rng)
    encoder.save_pretrained(folder)
    return encoder
