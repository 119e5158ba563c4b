"""Heads of equal width in a model whose first level, without attention, they would not divide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tests.conftest import MakeBundle, randomise

from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.memory import checkpoint_of
from langevin.checkpoints.original import write_original
from langevin.cli.main import run
from langevin.networks.unet import UNet, UNetConfig


def test_levels_without_attention_do_not_say_how_wide_heads_are(make_bundle: MakeBundle, tmp_path: Path) -> None:
    config = UNetConfig(
        model_channels=96,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        attention_levels=(False, True, True),
        num_heads=None,
        head_channels=64,
        context_channels=32,
    )
    bundle = make_bundle()
    unet = randomise(UNet(config), 3)
    source, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    write_original(checkpoint_of(replace(bundle, diffusion=replace(bundle.diffusion, network=unet))), source)
    assert run(["convert", str(source), str(folder), "--to", "diffusers"]) == 0
    again = load_bundle(folder).diffusion.network
    assert isinstance(again, UNet)
    assert again.config.heads(192) == 3
    z, context, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32), torch.tensor([300.0])
    assert torch.equal(unet(z, t, context=context), again(z, t, context=context))
