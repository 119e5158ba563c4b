"""Tiny text encoders of the transformers library with random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = (
    "a", "an", "and", "red", "green", "blue", "orange", "circle", "square", "triangle", "flat", "icon", "left",
    "right", "of", ",", ".", "(", ")", ":", "1", "3",
)  # fmt: skip
SPECIAL = {
    "t5": ("<pad>", "</s>", "<unk>"),
    "bert": ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
    "clip": ("<|endoftext|>", "<|startoftext|>"),
}
TEMPLATE = {"t5": "$A </s>", "bert": "[CLS] $A [SEP]", "clip": "<|startoftext|> $A <|endoftext|>"}


def write_encoder(folder: Path, kind: str, *, seed: int = 0, width: int = 32) -> Path:
    """A folder with config.json, tokenizer.json and model.safetensors."""
    special = SPECIAL[kind]
    vocabulary = {word: i for i, word in enumerate((*special, *WORDS))}
    pad, unknown = special[0], special[-1]
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, vocabulary[token]) for token in special if token in TEMPLATE[kind].split()]
    backend.post_processor = processors.TemplateProcessing(single=TEMPLATE[kind], special_tokens=used)
    backend.enable_truncation(5)  # what a folder's own tokenizer says of lengths is not to matter
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, unk_token=unknown)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "num_hidden_layers": 2, "num_attention_heads": 4}
    network: Any
    match kind:
        case "t5":
            network = T5EncoderModel(
                T5Config(
                    vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                    pad_token_id=0,
                )
            )  # fmt: skip
        case "bert":
            network = BertModel(
                BertConfig(**sizes, hidden_size=width, intermediate_size=64, max_position_embeddings=40, pad_token_id=0)
            )
        case _:
            network = CLIPTextModel(
                CLIPTextConfig(
                    **sizes, hidden_size=width, intermediate_size=64, max_position_embeddings=77, eos_token_id=0,
                    bos_token_id=1, pad_token_id=0,
                )
            )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():  # T5's own first values would leave its states nearly constant
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
