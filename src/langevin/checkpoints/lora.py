"""LoRA files: kohya's layout and that of diffusers / PEFT, both ways; those of LyCORIS are read.

A file is fitted to a model strictly: each of its tensors belongs to a layer that the model has, and to its shape.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from langevin.checkpoints import places
from langevin.checkpoints.adapter_names import split
from langevin.checkpoints.adapter_tensors import adapter_of
from langevin.checkpoints.recognise import Kind, recognise
from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo, dtype_name, in_words
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle
from langevin.model.text import TextEncoder
from langevin.networks.lora import Adapter, LoraWeights, fits, parameter_name
from langevin.networks.unet import UNet

LoraParts = Mapping[str, Mapping[str, LoraWeights]]
"""By part ("unet", "text") and by the name of our layer."""

AdapterParts = Mapping[str, Mapping[str, Adapter]]
"""The same with adapters of any kind; what is for a layer's bias stands under "NAME.bias"."""


class LoraLayout(StrEnum):
    KOHYA = "kohya"
    """`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; text: `lora_te_...`."""
    DIFFUSERS = "diffusers"
    """`unet.down_blocks.0...to_q.lora_A.weight`, `.lora_B.weight`; text: `text_encoder.text_model...`; alphas in the
    metadata, as diffusers writes them."""


_METADATA = "lora_adapter_metadata"
_PREFIXES = {"unet": ("lora_unet_", "unet."), "text": ("lora_te_", "text_encoder.")}

_CAUSES = (
    (re.compile(r"lora_te[12]_|text_encoder_2\.|lora_unet_(input|output|middle)_block|add_embedding"),
     "it was made for Stable Diffusion XL"),
    (re.compile(r"^(lora_)?transformer[._]|double_blocks|single_transformer|joint_transformer"),
     "it was made for a diffusion transformer (FLUX, Stable Diffusion 3)"),
    (re.compile(r"\.oft_"), "it is an OFT, which turns weights instead of adding to them and is not supported"),
    (re.compile(r"\.on_input$"), "it is an (IA)3, which is not supported"),
    (re.compile(r"\.[ab][12]\.weight$"), "it is a GLoRA, which is not supported"),
    (re.compile(r"\.bias_(indices|values|size)$"), "it changes biases sparsely, as early LyCORIS files do"),
)  # fmt: skip
"""What tensors with no place here tell about a file."""


_MATRICES = nn.Linear | nn.Conv2d
_NORMS = nn.GroupNorm | nn.LayerNorm


# -- names ------------------------------------------------------------------------------------------------------------


def layer_names(bundle: ModelBundle, *, norms: bool = False) -> dict[str, dict[str, str]]:
    """For each part, the name that diffusers gives to each of our linear layers and convolutions, by our name.

    norms: the normalisations too.
    """
    kinds = _MATRICES | _NORMS if norms else _MATRICES
    unet = bundle.diffusion.network
    assert isinstance(unet, UNet)
    laid = places.diffusers_unet([f"{n}.weight" for n in _layers(unet, kinds)], unet.config)
    found = {"unet": _named(unet, laid, kinds)}
    if isinstance(bundle.text, TextEncoder):
        text = bundle.text.network
        found["text"] = _named(text, places.identity(f"{n}.weight" for n in _layers(text, kinds)), kinds)
    return found


def _layers(network: nn.Module, kinds: UnionType) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def _named(network: nn.Module, laid: places.Places, kinds: UnionType) -> dict[str, str]:
    return {name: laid[f"{name}.weight"].name.removesuffix(".weight") for name in _layers(network, kinds)}


def _aliases(name: str, part: str) -> Iterator[str]:
    """Every way in which files call one layer, without the ending."""
    kohya, diffusers = _PREFIXES[part]
    yield kohya + name.replace(".", "_")
    yield diffusers + name
    if part == "text":  # as transformers 5 holds it in memory
        yield diffusers + name.removeprefix("text_model.")


# -- reading ----------------------------------------------------------------------------------------------------------


def read_lora(path: str | os.PathLike[str], bundle: ModelBundle) -> AdapterParts:
    """A file of adapters, fitted to the layers of a model: LoRA of either layout, and LyCORIS's LoCon, LoHa, LoKr, DoRA
    and full differences. Alpha and rank are each layer's own.

    A layer whose alpha is not stated has alpha = rank. Raises CheckpointError, in one line with the probable cause,
    where a tensor belongs to no layer of the model, has another shape, or lacks another part of its adapter.
    """
    file = SafetensorsFile(path)
    contents = recognise(file.tensors)
    known = {
        alias: (part, ours)
        for part, names in layer_names(bundle, norms=True).items()
        for ours, name in names.items()
        for alias in _aliases(name, part)
    }
    alphas = _Alphas(file)
    found: dict[tuple[str, str], dict[str, str]] = {}
    unmatched = []
    for name in file.tensors:
        module, kind = split(name)
        if module not in known or kind in found.setdefault(known[module], {}):
            unmatched.append(name)
        else:
            found[known[module]][kind] = name
    if unmatched or not found:
        if contents.kind is not Kind.LORA and len(unmatched) == len(file.tensors):
            raise CheckpointError(f"{path}: {contents.words}; expected a LoRA")
        raise CheckpointError(
            f"{path}: {len(unmatched)} of {len(file.tensors)} tensors belong to no layer of {bundle.info.name} "
            f"({in_words(unmatched)}): {_cause(unmatched)}"
        )
    parts: dict[str, dict[str, Adapter]] = {}
    for (part, ours), names in found.items():
        network = bundle.networks()[part]
        bias = {"diff": names.pop("diff_b")} if "diff_b" in names else {}
        for key, kinds in ((ours, names), (f"{ours}.bias", bias)):
            if kinds:
                parts.setdefault(part, {})[key] = _fitted(file, kinds, alphas, network, key)
    return parts


def _fitted(file: SafetensorsFile, names: Mapping[str, str], alphas: _Alphas, network: nn.Module, key: str) -> Adapter:
    adapter = adapter_of(file, names, alphas.of)
    layer, _, kind = parameter_name(key).rpartition(".")
    weight: Tensor | None = getattr(network.get_submodule(layer), kind)
    if weight is None or not fits(adapter, weight.shape):
        given = ", ".join(f"{name} {list(file.tensors[name].shape)}" for name in names.values())
        shape = [] if weight is None else list(weight.shape)
        raise CheckpointError(
            f"{file.label}: {given} do not fit the layer's {kind} {shape}: {_width_cause(key, adapter, shape)}"
        )
    return adapter


class _Alphas:
    """The alphas that stand in a file's metadata: each part's own, and patterns for single layers."""

    def __init__(self, file: SafetensorsFile) -> None:
        try:
            self.data: dict[str, Any] = json.loads(file.metadata.get(_METADATA, "{}"))
            # A file that was saved without them has null or an empty object here.
            self.data = {key: value for key, value in (self.data or {}).items() if value is not None}
        except (ValueError, RecursionError, AttributeError):
            raise CheckpointError(f"{file.label}: its {_METADATA} is damaged; expected JSON") from None
        self.label = file.label

    def of(self, name: str, rank: int) -> float:
        """Of the layer that a tensor belongs to, by the tensor's name; its rank where nothing is said."""
        for _, prefix in _PREFIXES.values():
            if not name.startswith(prefix):
                continue
            module = split(name)[0].removeprefix(prefix)
            pattern = self.data.get(f"{prefix}alpha_pattern") or {}
            value = self.data.get(f"{prefix}lora_alpha", rank)
            for key, special in pattern.items() if isinstance(pattern, dict) else ():
                # A pattern means the layer of that name, or one whose path ends with it.
                if module == key or module.endswith(f".{key}"):
                    value = special
            if self.data.get(f"{prefix}use_rslora") and isinstance(value, int | float):
                value = value * math.sqrt(rank)  # alpha / sqrt(r) in place of alpha / r (Kalajdzievski 2023)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise CheckpointError(f"{self.label}: {_METADATA} gives {module} the alpha {str(value)[:40]!r}")
            return float(value)
        return float(rank)


def _cause(unmatched: Iterable[str]) -> str:
    names = list(unmatched)
    for pattern, words in _CAUSES:
        if any(pattern.search(name) for name in names):
            return words
    return "it was made for a model of another architecture"


def _width_cause(ours: str, adapter: Adapter, shape: Sequence[int]) -> str:
    families = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
    theirs, here = (families.get(s[1]) if s and len(s) > 1 else None for s in (adapter.shape, shape))
    if ".attn2.to_" in ours and theirs and theirs != here:
        return f"it was made for {theirs}"
    return "it was made for a model of another architecture"


# -- writing ----------------------------------------------------------------------------------------------------------


def write_lora(
    path: str | os.PathLike[str],
    parts: LoraParts,
    bundle: ModelBundle,
    layout: LoraLayout,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write adapters as one file, atomically, in the dtype that they have. metadata: further facts to keep with them.

    The same adapters give the same bytes. FileExistsError without `overwrite`.
    """
    names = layer_names(bundle)
    tensors: dict[str, Tensor] = {}
    facts = {"format": "pt", **(metadata or {})}
    match layout:
        case LoraLayout.KOHYA:
            for part, layers in parts.items():
                for ours, lora in layers.items():
                    module = _PREFIXES[part][0] + names[part][ours].replace(".", "_")
                    tensors |= {f"{module}.lora_down.weight": lora.down, f"{module}.lora_up.weight": lora.up}
                    tensors[f"{module}.alpha"] = torch.tensor(lora.alpha, dtype=lora.down.dtype)
            facts |= _kohya_facts(parts, bundle)
        case LoraLayout.DIFFUSERS:
            for part, layers in parts.items():
                for ours, lora in layers.items():
                    module = _PREFIXES[part][1] + names[part][ours]
                    tensors |= {f"{module}.lora_A.weight": lora.down, f"{module}.lora_B.weight": lora.up}
            facts[_METADATA] = json.dumps(_diffusers_facts(parts, names), indent=2, sort_keys=True)
        case _:
            assert_never(layout)
    infos = {name: TensorInfo(dtype_name(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
    write_safetensors(path, infos, lambda name: tensors[name], metadata=facts.items(), overwrite=overwrite)
    return Path(path)


def _commonest(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _kohya_facts(parts: LoraParts, bundle: ModelBundle) -> dict[str, str]:
    """What its tools show and other programs sort files by."""
    loras = [lora for layers in parts.values() for lora in layers.values()]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_commonest(lora.rank for lora in loras)),
        "ss_network_alpha": str(_plain(_commonest(lora.alpha for lora in loras))),
        "ss_v2": str(bundle.info.family == "sd2"),
    }


def _diffusers_facts(parts: LoraParts, names: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The arguments of PEFT's configuration, by which diffusers takes the file."""
    facts: dict[str, Any] = {}
    for part, layers in parts.items():
        prefix = _PREFIXES[part][1]
        # Without "text_model.", which transformers' versions have or have not: the end of a path is enough.
        called = {ours: names[part][ours].removeprefix("text_model.") for ours in layers}
        rank, alpha = (_commonest(v) for v in ([x.rank for x in layers.values()], [x.alpha for x in layers.values()]))
        facts |= {
            f"{prefix}r": rank,
            f"{prefix}lora_alpha": _plain(alpha),
            f"{prefix}target_modules": sorted(called.values()),
            f"{prefix}rank_pattern": {called[n]: x.rank for n, x in layers.items() if x.rank != rank},
            f"{prefix}alpha_pattern": {called[n]: _plain(x.alpha) for n, x in layers.items() if x.alpha != alpha},
        }
    return facts
