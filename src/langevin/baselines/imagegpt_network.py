"""ImageGPT (Chen et al. 2020): a transformer decoder over the pixels of a picture in reading order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.attention import attend, merge_heads, split_heads
from langevin.networks.blocks import check_counts


@dataclass(frozen=True, kw_only=True)
class ImageGptConfig:
    """What shapes the network. The paper's smallest (iGPT-S) is width=512, layers=24, heads=8, clusters=512."""

    size: int = 28
    """Height and width of the pictures; size x size tokens."""
    channels: int = 1
    """Of a pixel: 1 (grey) or 3. A token is a pixel with all its channels."""
    clusters: int | None = None
    """Colours that pixels are rounded to, found by k-means in the data. None, for grey only: the 256 levels as they
    are, and only then is there a likelihood of the pictures themselves."""
    width: int = 64
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        check_counts(self, size=1, clusters=2, width=1, layers=1, heads=1)
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: must be 1 or 3")
        if self.clusters is None and self.channels == 3:
            raise ValueError("clusters null: pixels of 3 channels have 2^24 values; give a number of clusters")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided into {self.heads} heads")

    @property
    def vocabulary(self) -> int:
        """Values of a token."""
        return 256 if self.clusters is None else self.clusters


class Block(nn.Module):
    """LayerNorm, causal attention, LayerNorm, feed-forward; both residual (Radford et al. 2019, section 2.3)."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        for layer in (self.qkv, self.up, self.out, self.down):
            # The residual sums have 2 x layers terms.
            residual = layer is self.out or layer is self.down
            nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5 if residual else width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: B N C, returns the same; position n sees positions <= n."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))  # B h N d
        x = x + self.out(merge_heads(attend(q, k, v, causal=True)))
        return self._fed(x)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """x: B 1 C, at `position`. keys, values: B h N d, filled up to there and now at it too."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))  # B h 1 d
        keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
        x = x + self.out(merge_heads(attend(q, keys[:, :, : position + 1], values[:, :, : position + 1])))
        return self._fed(x)

    def _fed(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ImageGpt(nn.Module):
    """From tokens to the logits of each token, given those before it.

    `palette`, K C in [-1, 1], is what the tokens stand for; it is kept with the weights and does not train.
    """

    palette: Tensor

    def __init__(self, config: ImageGptConfig) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Parameter(0.02 * torch.randn(config.width))
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.size**2, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.layers) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        levels = torch.arange(config.vocabulary)[:, None].expand(-1, config.channels) / 127.5 - 1
        self.register_buffer("palette", levels.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 B N, N = size^2. Returns B N K: at n the logits of token n, from tokens 0 ... n - 1."""
        start = self.start.expand(len(tokens), 1, -1)
        x = torch.cat([start, self.tokens(tokens[:, :-1])], 1) + self.positions  # B N C
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class TokenByToken:
    """The network evaluated in reading order; keys and values of earlier tokens are kept."""

    def __init__(self, network: ImageGpt, count: int) -> None:
        """count: pictures made at once."""
        self.network = network
        config, like = network.config, network.start
        shape = (config.layers, 2, count, config.heads, config.size**2, config.width // config.heads)
        self._kept = like.new_zeros(shape)
        self._input = like.detach().expand(count, 1, -1)
        self._next = 0

    @torch.no_grad()
    def logits_of_next(self) -> Tensor:
        """B K, of the next token. Call `put` before asking for another."""
        x = self._input + self.network.positions[self._next]
        for block, (keys, values) in zip(self.network.blocks, self._kept, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, keys, values, self._next)
        out: Tensor = self.network.head(self.network.norm(x))[:, 0]
        return out

    @torch.no_grad()
    def put(self, tokens: Tensor) -> None:
        """What the next token is: int64 [B]."""
        self._input = self.network.tokens(tokens)[:, None]
        self._next += 1
