"""Contrastive language-image pre-training (Radford et al. 2021, section 2.3 and figure 3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.images.grids import save_grid
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import Clip
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import PictureSet
from langevin.training.data.pictures import squared
from langevin.training.distributed import gather_rows
from langevin.training.randomness import generator, seed_for


class Pairs(NamedTuple):
    """A batch of pictures and their captions."""

    images: Tensor
    """float32 B 3 H W."""
    tokens: Tensor
    """int64 B L."""
    names: Tensor
    """int64 [B], equal where captions are equal."""


class ClipObjective:
    """Each picture is to find its own caption in the batch, and each caption its picture.

    The image tower takes squares: pictures of other buckets are stretched. Of several processes each sees the
    embeddings of all.
    """

    whole_batch = True

    def __init__(
        self, network: Clip, tokenizer: Tokenizer, data: PictureSet, captions: CaptionConfig, *, seed: int, device: str
    ) -> None:
        self.module: nn.Module = network.to(device)
        self.network = network
        self.tokenizer = tokenizer
        self.data = data
        self.captions = captions
        self.seed = seed
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {"data": self.data.fingerprint, "captions": self.captions.model_dump(mode="json")}

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss_of(self.prepare(samples, step), samples, step)

    def prepare(self, samples: list[tuple[int, int]], step: int) -> Pairs:
        texts = [
            caption(self.data.records[i], self.captions, generator(self.seed, "caption", epoch, i))
            for epoch, i in samples
        ]
        images = squared(self.data.views(samples, self.seed), self.network.image_size)
        images = _shifted(images, generator(self.seed, "shift", step))
        names = torch.tensor([seed_for(0, text) - 2**63 for text in texts])
        return Pairs(images, short_tokens(self.tokenizer, texts), names)

    def loss_of(self, prepared: Pairs, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, tokens, names = (t.to(self.device) for t in prepared)
        a, b = embeddings(self.network, images, tokens)
        logits = similarity(self.network, gather_rows(a), gather_rows(b))
        # The same words for two pictures of a batch: neither is a wrong answer for the other.
        names = gather_rows(names)
        twins = (names[:, None] == names[None, :]) & ~torch.eye(len(names), dtype=torch.bool, device=self.device)
        logits = logits.masked_fill(twins, -math.inf)
        answer = torch.arange(len(names), device=self.device)
        loss = (F.cross_entropy(logits, answer) + F.cross_entropy(logits.T, answer)) / 2
        right = (logits.detach().argmax(1) == answer).float().mean()
        return loss, {"accuracy": right, "logit_scale": self.network.logit_scale.detach().exp()}

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """For eight captions, a row each, the eight pictures that the towers find nearest."""
        assert isinstance(module, Clip)
        chosen = torch.linspace(0, len(self.data) - 1, 8).long().tolist()
        tokens = short_tokens(self.tokenizer, [str(self.data.records[i]["caption"]) for i in chosen]).to(self.device)
        some = torch.cat([torch.arange(0, len(self.data), max(1, len(self.data) // 1000)), torch.tensor(chosen)])
        images = self.data.squares(some, self.network.image_size)
        parts = [embeddings(module, part.to(self.device), tokens) for part in images.split(100)]
        logits = torch.cat([similarity(module, a, b) for a, b in parts])
        best = logits.topk(8, dim=0).indices.T.flatten().cpu()
        save_grid(path, images[best], columns=8)


def short_tokens(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """int64 [B, L], padded to the longest of the batch only.

    The tower is causal and pools at the end token, so padding behind it changes neither result nor gradient.
    """
    lines = [[tokenizer.bos, *tokenizer.encode(t)[: tokenizer.room], tokenizer.eos] for t in texts]
    length = max(map(len, lines))
    return torch.tensor([line + [tokenizer.pad] * (length - len(line)) for line in lines])


def embeddings(network: Clip, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of images and texts, unit vectors, B D each, float32."""
    return network.embed_image(images).float(), network.embed_text(tokens).float()


def similarity(network: Clip, a: Tensor, b: Tensor) -> Tensor:
    """Scaled cosine similarities of embeddings, images x texts; the scale is held below 100 as in the paper."""
    with torch.autocast(a.device.type, enabled=False):
        return network.logit_scale.clamp(max=math.log(100)).exp() * (a @ b.T)


def _shifted(images: Tensor, g: torch.Generator) -> Tensor:
    """The batch moved by up to 4 pixels, edges repeated: a mild augmentation that changes no meaning."""
    dy, dx = (int(v) for v in torch.randint(0, 9, (2,), generator=g))
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return padded[..., dy : dy + images.shape[-2], dx : dx + images.shape[-1]]
