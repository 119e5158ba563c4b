"""The repeated blocks of the networks: what is sharded, compiled and recomputed one by one."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from langevin.errors import RequestError
from langevin.networks import autoencoder, clip, unet

_KINDS = (unet.Stage, clip.Layer, autoencoder.ResnetBlock, autoencoder.AttnBlock)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks inside a module, none within another; empty for a network of another kind."""
    return [m for m in module.modules() if isinstance(m, _KINDS)]


def recompute(module: nn.Module) -> None:
    """From now on each block keeps its inputs alone and runs again in the backward pass (Chen et al. 2016).

    Names and weights stay as they are. Raises RequestError where the module has no blocks.
    """
    found = blocks(module)
    if not found:
        raise RequestError(f"loop.recompute: a {type(module).__name__} has no blocks to compute again: leave it out")
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Each block through torch.compile, which compiles equal ones once; a module without blocks as a whole."""
    for part in blocks(module) or [module]:
        part.compile()
