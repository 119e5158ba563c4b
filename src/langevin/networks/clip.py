"""CLIP's two towers (Radford et al. 2021) and the pair of them, named as in the Hugging Face files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.attention import attend, merge_heads, split_heads
from langevin.networks.blocks import check_counts

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """What shapes the text tower. The defaults are those of ViT-L/14, the text encoder of Stable Diffusion 1.x."""

    vocabulary: int = 49408
    """Number of tokens."""
    width: int = 768
    """Channels of the states."""
    layers: int = 12
    """Transformer layers. Stable Diffusion 2 uses 23 of the 24 of ViT-H/14, or all 24 with `layer=-2`."""
    heads: int = 12
    """Attention heads."""
    mlp_width: int = 3072
    """Channels inside the feed-forward networks."""
    positions: int = 77
    """Longest sequence of tokens."""
    activation: Activation = "quick_gelu"
    """OpenAI's models have quick_gelu, OpenCLIP's ViT-H/14 the exact gelu."""
    projection: int | None = None
    """Width of the space shared with images. None: no projection."""
    eos_token: int = 49407
    """The token whose state stands for the whole text."""

    def __post_init__(self) -> None:
        check_counts(self, vocabulary=1, layers=1, mlp_width=1, positions=1, projection=1)
        check_transformer(self.width, self.heads, self.activation)


@dataclass(frozen=True, kw_only=True)
class ClipImageConfig:
    """What shapes the image tower. The defaults are those of ViT-L/14."""

    image_size: int = 224
    """Height and width of the picture."""
    patch_size: int = 14
    """Height and width of a patch: divides `image_size`."""
    in_channels: int = 3
    """Channels of the picture."""
    width: int = 1024
    """Channels of the states."""
    layers: int = 24
    """Transformer layers."""
    heads: int = 16
    """Attention heads."""
    mlp_width: int = 4096
    """Channels inside the feed-forward networks."""
    activation: Activation = "quick_gelu"
    """As in `ClipTextConfig`."""
    projection: int | None = 768
    """Width of the space shared with texts. None: no projection."""

    def __post_init__(self) -> None:
        check_counts(self, image_size=1, patch_size=1, in_channels=1, layers=1, mlp_width=1, projection=1)
        check_transformer(self.width, self.heads, self.activation)
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")


def check_transformer(width: int, heads: int, activation: str) -> None:
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(f"width {width} is not a positive multiple of heads {heads}")
    if activation not in ("quick_gelu", "gelu"):
        raise ValueError(f"activation {activation!r}: must be 'quick_gelu' or 'gelu'")


class TextStates(NamedTuple):
    """What the text tower says of a batch of texts."""

    states: Tensor
    """B L D: the hidden states of the chosen layer through the final LayerNorm."""
    pooled: Tensor
    """B D, or B D' with a projection: the states at each text's first end token."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: B L D, returns the same."""
        q, k, v = (split_heads(f(x), self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # B h L d
        out: Tensor = self.out_proj(merge_heads(attend(q, k, v, causal=self.causal)))
        return out


class Mlp(nn.Module):
    """The position-wise network."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: B L D, returns the same."""
        h = self.fc1(x)
        match self.activation:
            case "quick_gelu":
                h = h * torch.sigmoid(1.702 * h)
            case "gelu":
                h = F.gelu(h)
            case _:
                assert_never(self.activation)
        out: Tensor = self.fc2(h)
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each as a residual after a LayerNorm."""

    def __init__(self, config: ClipTextConfig | ClipImageConfig, *, causal: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.width, config.heads, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x: B L D, returns the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        x = x + self.mlp(self.layer_norm2(x))
        return x


class Layers(nn.Module):
    """The stack of layers, with the initialisation of the CLIP paper's code: narrower the deeper the stack."""

    def __init__(self, config: ClipTextConfig | ClipImageConfig, *, causal: bool) -> None:
        super().__init__()
        layers = [Layer(config, causal=causal) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        residual_std = config.width**-0.5 * (2 * config.layers) ** -0.5
        for layer in layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                init_linear(projection, config.width**-0.5)
            init_linear(layer.self_attn.out_proj, residual_std)
            init_linear(layer.mlp.fc1, (2 * config.width) ** -0.5)
            init_linear(layer.mlp.fc2, residual_std)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """x: B L D through the first `count` layers."""
        for layer in self.layers[:count]:
            x = layer(x)
        return x


def init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class TextEmbeddings(nn.Module):
    """Tokens and their positions."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, L]. Returns B L D."""
        length, positions = tokens.shape[1], self.position_embedding.num_embeddings
        if length > positions:
            raise ValueError(f"{length} tokens: this text tower takes at most {positions}")
        return self.token_embedding(tokens) + self.position_embedding.weight[:length]


class TextTransformer(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Layers(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """tokens: int64 [B, L]; layer: -1 the last. Returns B L D."""
        depth = len(self.encoder.layers)
        if not -depth <= layer <= -1:
            raise ValueError(f"layer {layer}: must lie in [-{depth}, -1] for a text tower of {depth} layers")
        states: Tensor = self.final_layer_norm(self.encoder(self.embeddings(tokens), depth + layer + 1))
        return states


class ClipText(nn.Module):
    """The text tower: what Stable Diffusion's prompts go through."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        if config.projection is not None:
            self.text_projection = nn.Linear(config.width, config.projection, bias=False)
            init_linear(self.text_projection, config.width**-0.5)

    def forward(self, tokens: Tensor, layer: int = -1) -> TextStates:
        """States of every token, and of the text as a whole at its first end token (at the start if it has none).

        tokens: int64 [B, L], L <= config.positions. layer: -1 the last, -2 the last but one, down to -config.layers;
        that layer's states go through the final LayerNorm. ValueError when out of these bounds.
        """
        states = self.text_model(tokens, layer)  # B L D
        end = (tokens == self.config.eos_token).int().argmax(1)  # B: the first of several
        pooled = states[torch.arange(len(tokens), device=tokens.device), end]  # B D
        if self.config.projection is not None:
            pooled = self.text_projection(pooled)
        return TextStates(states, pooled)


class ImageEmbeddings(nn.Module):
    """Patches and their positions, after a class token."""

    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.patch_embedding = nn.Conv2d(
            config.in_channels, config.width, config.patch_size, stride=config.patch_size, bias=False
        )
        patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Embedding(patches + 1, config.width)
        nn.init.normal_(self.position_embedding.weight, std=config.width**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        """image: B 3 S S. Returns B 1+N D."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)  # B N D
        first = self.class_embedding.to(patches.dtype).expand(len(image), 1, -1)  # B 1 D
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class ImageTransformer(nn.Module):
    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.embeddings = ImageEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # spelled so in every published file
        self.encoder = Layers(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.width)

    def states(self, image: Tensor, layer: int) -> Tensor:
        """image: B 3 S S; layer: -1 the last. Returns B 1+N D, the class token first."""
        depth = len(self.encoder.layers)
        if not -depth <= layer <= -1:
            raise ValueError(f"layer {layer}: must lie in [-{depth}, -1] for an image tower of {depth} layers")
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(image)), depth + layer + 1)
        return out

    def forward(self, image: Tensor) -> Tensor:
        """image: B 3 S S. Returns B D, the class token."""
        pooled: Tensor = self.post_layernorm(self.states(image, -1)[:, 0])
        return pooled


class ClipImage(nn.Module):
    """The image tower: a vision transformer."""

    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = ImageTransformer(config)
        if config.projection is not None:
            self.visual_projection = nn.Linear(config.width, config.projection, bias=False)
            init_linear(self.visual_projection, config.width**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        """One vector for each picture, B D or B D' with a projection.

        image: B 3 S S with S = config.image_size, normalised by the mean and deviation that the tower was trained with.
        """
        self._check(image)
        pooled: Tensor = self.vision_model(image)
        if self.config.projection is not None:
            pooled = self.visual_projection(pooled)
        return pooled

    def states(self, image: Tensor, layer: int = -1) -> Tensor:
        """What a layer makes of the class token and of each patch, B 1+N D: as it is, without the last LayerNorm.

        image: as for `forward`. layer: -1 the last, -2 the last but one, down to -config.layers.
        """
        self._check(image)
        return self.vision_model.states(image, layer)

    def _check(self, image: Tensor) -> None:
        size = (self.config.image_size, self.config.image_size)
        if tuple(image.shape[-2:]) != size:
            raise ValueError(f"picture of {tuple(image.shape[-2:])}: this image tower takes {size}")


class Clip(nn.Module):
    """Both towers with a learned temperature, for contrastive training and for scores.

    The towers stay the caller's: their parts are registered here too, so that the names are those of the published
    files, and the parameters are the same objects. ValueError unless both project to the same width.
    """

    def __init__(self, text: ClipText, image: ClipImage) -> None:
        super().__init__()
        if text.config.projection is None or text.config.projection != image.config.projection:
            raise ValueError(
                f"projections {text.config.projection} (text) and {image.config.projection} (image): must be equal"
            )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.text_model = text.text_model
        self.vision_model = image.vision_model
        self.visual_projection = image.visual_projection
        self.text_projection = text.text_projection
        self._towers = (text, image)  # in a tuple: not registered a second time

    @property
    def image_size(self) -> int:
        """Height and width of the pictures that the image tower takes."""
        return self._towers[1].config.image_size

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Unit vectors B D'. tokens: int64 [B, L]."""
        return F.normalize(self._towers[0](tokens).pooled, dim=-1)

    def embed_image(self, image: Tensor) -> Tensor:
        """Unit vectors B D'. image: B 3 S S, normalised as `ClipImage` says."""
        return F.normalize(self._towers[1](image), dim=-1)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Likeness of every picture to every text, times the learned scale: B_image B_text."""
        return self.logit_scale.exp() * self.embed_image(image) @ self.embed_text(tokens).T
