"""What a tensor of an adapter file is to which layer, by its name. Needs no torch."""

from __future__ import annotations

import re

SUFFIXES = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up", ".alpha": "alpha", ".lora_mid.weight": "mid",
    ".hada_w1_a": "w1_a", ".hada_w1_b": "w1_b", ".hada_w2_a": "w2_a", ".hada_w2_b": "w2_b",
    ".hada_t1": "t1", ".hada_t2": "t2",
    ".lokr_w1": "kron w1", ".lokr_w1_a": "kron w1_a", ".lokr_w1_b": "kron w1_b",
    ".lokr_w2": "kron w2", ".lokr_w2_a": "kron w2_a", ".lokr_w2_b": "kron w2_b", ".lokr_t2": "kron t2",
    ".diff": "diff", ".diff_b": "diff_b", ".w_norm": "diff", ".b_norm": "diff_b",
    ".dora_scale": "dora", ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
"""Endings of a tensor's name, by the programs that write them: kohya and LyCORIS; diffusers now and before PEFT."""

_PROCESSOR = re.compile(r"(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
"""Attention in the files of diffusers' first LoRA releases."""


def split(name: str) -> tuple[str, str]:
    """The layer's name and what the tensor is to it; ("", "") for a name of no known kind."""
    if match := _PROCESSOR.fullmatch(name):
        return f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else ""), match[3]
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), kind
    return "", ""
