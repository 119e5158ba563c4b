"""Small things to train, for the loop's tests and the processes that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.objectives.clip import ClipObjective
from langevin.training.randomness import generator, normal, sample_generators

CONFIG = LoopConfig(
    steps=60, batch_size=7, learning_rate=0.02, warmup=5, save_every=10, sample_every=30, log_every=5,
    precision="float32",
)  # fmt: skip


class Regression:
    """y = W x with noise from the step's own stream."""

    count = 40

    def __init__(self, data: str = "a", poison: int | None = None, width: int = 8, dropout: float = 0.0) -> None:
        torch.manual_seed(7)
        self.module: nn.Module = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 2))
        self.x = torch.randn(self.count, 4, generator=generator(1, "x"))
        self.y = self.x[:, :2] * 2 - self.x[:, 2:]
        self.facts: dict[str, Any] = {"data": data}
        self.poison = poison

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.tensor([i for _, i in samples])
        noise = 0.05 * torch.randn(len(index), 4, generator=generator(0, "noise", step))
        loss = (self.module(self.x[index] + noise).float() - self.y[index]).square().mean()
        if step == self.poison:
            loss = loss * float("nan")
        return loss, {"twice": 2 * loss.detach()}

    def preview(self, module: nn.Module, path: Path) -> None:
        path.write_bytes(b"drawn")


class Prepared(Regression):
    """The same with each sample's own noise, drawn ahead, and dropout."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__(dropout=dropout)

    def prepare(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in samples])
        noise = normal(sample_generators(0, "noise", step, samples), (4,))
        return self.x[index] + 0.05 * noise, self.y[index]

    def loss_of(
        self, prepared: tuple[Tensor, Tensor], samples: list[tuple[int, int]], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = prepared
        loss = (self.module(x).float() - y).square().mean()
        return loss, {"once": loss.detach()}


class Denoise:
    """A U-Net that finds clean squares in noise; `dropout` draws from the global stream.

    With two channels in each group of its norms: alone in its group, a channel's bias would have no effect, its
    gradient would be rounding, and Adam would make steps of it.
    """

    count = 24

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(3)
        self.module: nn.Module = UNet(
            UNetConfig(
                in_channels=1, out_channels=1, model_channels=64, channel_mult=(1,), num_res_blocks=1,
                attention_levels=(False,), middle_attention=False, context_channels=None, dropout=dropout,
            )
        )  # fmt: skip
        nn.init.normal_(self.module.out[2].weight, std=0.05)  # type: ignore[index, union-attr, arg-type]
        self.x0 = torch.randn(self.count, 1, 4, 4, generator=generator(1, "x")).sign()
        self.facts: dict[str, Any] = {}

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        streams = sample_generators(0, "noise", step, samples)
        x0 = self.x0[[i for _, i in samples]]
        t = torch.stack([torch.randint(1000, (), generator=g) for g in streams])
        raw = self.module(x0 + normal(streams, x0.shape[1:]), t)
        loss = (raw.float() - x0).square().mean()
        return loss, {"again": loss.detach()}

    def preview(self, module: nn.Module, path: Path) -> None:
        with torch.no_grad():
            out = module(self.x0[:2], torch.tensor([1.0, 2.0]))
        path.write_text(repr(out.sum().item()))


def small_clip() -> ClipObjective:
    """Two tiny towers and twelve pictures, of which pairs have the same caption."""
    torch.manual_seed(5)
    words = ("red", "blue", "green", "old", "new", "big")
    tokenizer = Tokenizer.train([f"a {w} thing" for w in words], 520)
    text = ClipTextConfig(
        vocabulary=len(tokenizer), eos_token=tokenizer.eos, width=32, layers=1, heads=2, mlp_width=64, projection=16
    )
    image = ClipImageConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2, mlp_width=64, projection=16)
    pictures = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=generator(2, "pictures"))
    data = PictureSet(pictures, [{"caption": f"a {words[i // 2]} thing"} for i in range(12)], "none")
    network = Clip(ClipText(text), ClipImage(image))
    return ClipObjective(network, tokenizer, data, CaptionConfig(), seed=0, device="cpu")
