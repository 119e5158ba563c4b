"""The code on the networks' page runs, and its totals are the networks'."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from langevin.networks.unet import UNet, UNetConfig

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()


def test_code_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/networks.md", "exec"), {})


def test_total_of_the_defaults_is_on_the_page() -> None:
    with torch.device("meta"):
        total = sum(p.numel() for p in UNet(UNetConfig()).parameters())
    assert f"| Stable Diffusion 1.x | | {total:,} |" in PAGE
