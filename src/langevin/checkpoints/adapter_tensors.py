"""The tensors of one layer in an adapter file, and the adapter that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.tensorfile import FLOATS
from langevin.errors import CheckpointError
from langevin.networks.lora import Adapter, LoraWeights
from langevin.networks.lycoris import Difference, DoraWeights, LoconWeights, LohaWeights, LokrWeights


class _Form(NamedTuple):
    """A way to say a change: the tensors that it must have and those that it may have."""

    needed: tuple[str, ...]
    further: tuple[str, ...] = ()


_Plain = LoraWeights | LoconWeights | LohaWeights | LokrWeights | Difference

_FORMS = (
    _Form(("down", "up"), ("mid",)),
    _Form(("w1_a", "w1_b", "w2_a", "w2_b"), ("t1", "t2")),
    _Form((), ("kron w1", "kron w1_a", "kron w1_b", "kron w2", "kron w2_a", "kron w2_b", "kron t2")),
    _Form(("diff",)),
)


def adapter_of(file: SafetensorsFile, names: Mapping[str, str], stated: Callable[[str, int], float]) -> Adapter:
    """The adapter of a layer's weight. names: the file's, by what they are; not `diff_b`, which is the bias's own.

    stated: the alpha that the metadata gives the layer of a tensor's name, or else the rank. Raises CheckpointError
    where a part is missing, or two adapters are there.
    """
    for name in names.values():
        info = file.tensors[name]
        if info.dtype not in FLOATS or not info.elements:
            raise CheckpointError(f"{file.label}: {name} is stored as {info.dtype} {list(info.shape)}, not as floats")
    found = {kind: file.read(name) for kind, name in names.items() if kind not in ("alpha", "dora", "magnitude")}
    forms = [form for form in _FORMS if set(found) & {*form.needed, *form.further}]
    have = next(iter(names.values()))
    if len(forms) != 1:
        what = "without an adapter" if not forms else "among the parts of two adapters"
        raise CheckpointError(f"{file.label}: {have} is there {what} of this layer")
    if missing := sorted(set(forms[0].needed) - set(found)) or _missing(found):
        have = next(name for kind, name in names.items() if kind in found)
        raise CheckpointError(f"{file.label}: {have} is there, its {' and '.join(missing)} part is not")
    adapter = _adapter(found)
    if "alpha" in names and not isinstance(adapter, Difference):
        adapter = adapter._replace(alpha=_number(file, names["alpha"]))
    elif isinstance(adapter, LoraWeights):
        adapter = adapter._replace(alpha=stated(names["down"], adapter.rank))
    return _decomposed(file, names, adapter)


def _number(file: SafetensorsFile, name: str) -> float:
    """A tensor of one finite number."""
    value = file.read(name)
    if value.numel() != 1 or not math.isfinite(float(value)):
        raise CheckpointError(f"{file.label}: {name} is not one finite number")
    return float(value)


def _missing(found: Mapping[str, Tensor]) -> list[str]:
    """Of what comes in pairs or in one of two ways."""
    if ("t1" in found) != ("t2" in found):
        return ["t1" if "t2" in found else "t2"]
    if not any(kind.startswith("kron") for kind in found):
        return []
    return [
        f"lokr_{matrix}"
        for matrix in ("w1", "w2")
        if f"kron {matrix}" not in found and not {f"kron {matrix}_a", f"kron {matrix}_b"} <= set(found)
    ]


def _adapter(found: Mapping[str, Tensor]) -> _Plain:
    """With alpha = rank."""
    if "diff" in found:
        return Difference(found["diff"])
    if "w1_a" in found:
        w1_a, w1_b, w2_a, w2_b = (found[kind] for kind in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return LohaWeights(w1_a, w1_b, w2_a, w2_b, found.get("t1"), found.get("t2"), float(len(w1_b)))
    if "down" in found:
        down, up, rank = found["down"], found["up"], float(len(found["down"]))
        return LoconWeights(down, found["mid"], up, rank) if "mid" in found else LoraWeights(down, up, rank)
    kinds = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    made = LokrWeights(**{kind: found.get(f"kron {kind}") for kind in kinds}, alpha=1.0)
    return made._replace(alpha=float(made.rank or 1))


def _decomposed(file: SafetensorsFile, names: Mapping[str, str], adapter: Adapter) -> Adapter:
    """The same within a DoRA, where the lengths of the rows or columns are there."""
    name = names.get("dora") or names.get("magnitude")
    if name is None:
        return adapter
    magnitude, shape = file.read(name), adapter.shape or ()
    sizes = [n for n in magnitude.shape if n != 1]
    # PEFT's lengths are those of the outputs. LyCORIS has either: [out, 1 ...] or [1, in, 1 ...].
    axis = 1 if "dora" in names and magnitude.ndim > 1 and magnitude.shape[0] == 1 else 0
    if len(sizes) > 1 or len(shape) < 2 or magnitude.numel() != shape[axis]:
        raise CheckpointError(
            f"{file.label}: {name} {list(magnitude.shape)} does not fit a weight of {list(shape)}: "
            "expected a length for each row or column"
        )
    return DoraWeights(adapter, magnitude.flatten(), axis)
