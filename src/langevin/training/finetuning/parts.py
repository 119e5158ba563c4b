"""What fine-tuning trains of a loaded model: all weights, low-rank adapters, the vectors of a new word, or a copy of
the encoder that steers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from langevin.errors import RequestError
from langevin.model.adapted import extended
from langevin.model.bundle import ModelBundle
from langevin.model.precision import float32_copy
from langevin.model.text import TextEncoder
from langevin.networks.attention import CrossAttention
from langevin.networks.blocks import Downsample, ResBlock, Upsample
from langevin.networks.controlnet import ControlNet
from langevin.networks.lora import Attached, LoraAdapters, LoraWeights
from langevin.networks.transformer import SpatialTransformer
from langevin.networks.unet import UNet
from langevin.training.config import Config


class Tuned(ABC):
    """A model at work with a part of it that trains. `module` holds that part and nothing else, so that optimiser,
    moving average and checkpoints do too."""

    module: nn.Module
    unet: nn.Module
    """The network that the loss runs; the trained part is at work in it."""
    text: TextEncoder
    trains_text: bool = False
    """Whether gradients have to go through the text tower."""

    @abstractmethod
    @contextmanager
    def using(self, module: nn.Module) -> Iterator[nn.Module]:
        """The U-Net with a copy of `module` at work in the place of `module`: its moving average. The text tower too,
        where it trains."""
        yield self.unet


class TunedWeights(Tuned):
    """Every weight of the U-Net, and of the text tower if wanted."""

    def __init__(self, bundle: ModelBundle, *, text: bool) -> None:
        self.text = _text_of(bundle)
        self.unet = float32_copy(bundle.diffusion.network).requires_grad_(True)
        self.trains_text = text
        parts = {"unet": self.unet}
        if text:
            tower = float32_copy(self.text.network).requires_grad_(True)
            parts["text"] = tower
            self.text = TextEncoder(tower, self.text.tokenizer, self.text.layer)
        self.module = nn.ModuleDict(parts)

    @contextmanager
    def using(self, module: nn.Module) -> Iterator[nn.Module]:
        assert isinstance(module, nn.ModuleDict)
        before = self.text.network
        if "text" in module:
            self.text.network = module["text"]  # type: ignore[assignment]
        try:
            yield module["unet"]
        finally:
            self.text.network = before


class LoraTarget(StrEnum):
    """Which layers get an adapter."""

    ATTENTION = "attention"
    """Queries, keys, values and outputs of the U-Net's attention."""
    TRANSFORMER = "transformer"
    """All linear layers and 1x1 convolutions of the U-Net's transformers, attention included."""
    CONVOLUTION = "convolution"
    """The U-Net's residual blocks, with their time embeddings, and its layers between resolutions."""
    TEXT = "text"
    """Attention and feed-forward layers of the text tower."""


class LoraOptions(Config):
    """The adapters: Hu et al. 2021."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(8.0, gt=0)
    """The adapter's output is multiplied by alpha / rank. With alpha = rank it is as it is."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' inputs."""
    targets: tuple[LoraTarget, ...] = Field((LoraTarget.ATTENTION,), min_length=1)


class TunedLora(Tuned):
    """Low-rank adapters beside the layers; the model's own weights are frozen."""

    def __init__(self, bundle: ModelBundle, options: LoraOptions) -> None:
        self.text = _text_of(bundle)
        self.unet = bundle.diffusion.network
        chosen = lora_layers(bundle, options.targets)
        self.trains_text = "text" in chosen
        networks = {"unet": self.unet, "text": self.text.network}
        self.adapters = {
            part: LoraAdapters(
                networks[part], names, rank=options.rank, alpha=options.alpha, dropout=options.dropout
            ).to(next(networks[part].parameters()).device)
            for part, names in chosen.items()
        }
        self.module = nn.ModuleDict(self.adapters)
        self._attached = {part: Attached(networks[part], a) for part, a in self.adapters.items()}

    @contextmanager
    def using(self, module: nn.Module) -> Iterator[nn.Module]:
        assert isinstance(module, nn.ModuleDict)
        with ExitStack() as stack:
            for part, attached in self._attached.items():
                other = module[part]
                assert isinstance(other, LoraAdapters)
                stack.enter_context(attached.using(other))
            yield self.unet

    @contextmanager
    def resting(self) -> Iterator[nn.Module]:
        """The U-Net as it was loaded, without its adapters."""
        with ExitStack() as stack:
            for attached in self._attached.values():
                stack.enter_context(attached.resting())
            yield self.unet

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, LoraWeights]]:
        """As files hold them."""
        return {
            part: {
                name: LoraWeights(found.down.to(dtype), found.up.to(dtype), found.alpha)
                for name, found in adapters.weights().items()
            }
            for part, adapters in self.adapters.items()
        }


def lora_layers(bundle: ModelBundle, targets: tuple[LoraTarget, ...]) -> dict[str, list[str]]:
    """The names of the layers that `targets` mean, by part, in the networks' order."""
    unet = bundle.diffusion.network
    assert isinstance(unet, UNet)
    kinds: dict[LoraTarget, tuple[type[nn.Module], ...]] = {
        LoraTarget.ATTENTION: (CrossAttention,),
        LoraTarget.TRANSFORMER: (SpatialTransformer,),
        LoraTarget.CONVOLUTION: (ResBlock, Downsample, Upsample),
    }
    wanted = tuple(kind for target in targets for kind in kinds.get(target, ()))
    found = {"unet": _layers_in(unet, wanted)} if wanted else {}
    if LoraTarget.TEXT in targets:
        found["text"] = _layers_in(_text_of(bundle).network.text_model.encoder, (nn.ModuleList,))
        found["text"] = [f"text_model.encoder.{name}" for name in found["text"]]
    return found


def _layers_in(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Linear layers and convolutions inside modules of these kinds."""
    outer = [f"{name}." for name, module in network.named_modules() if isinstance(module, kinds)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(tuple(outer))
    ]


class TunedWord(Tuned):
    """The vectors of one new word (Gal et al. 2022); all networks are frozen."""

    trains_text = True

    def __init__(self, bundle: ModelBundle, word: str, count: int, words: str) -> None:
        """The word gets `count` vectors, which begin as those of the tokens of `words`, in turn.

        Raises RequestError for a word that is known already, and for initial words without a token.
        """
        text = _text_of(bundle)
        ids = text.tokenizer.encode(words)
        if not ids:
            raise RequestError(f"the words {words!r} that the new word begins as hold no token: give one or more")
        table = text.network.text_model.embeddings.token_embedding.weight
        start = table[[ids[i % len(ids)] for i in range(count)]].float().clone()  # n D
        self.first, self.count = len(text.tokenizer), count
        self.text = extended(text, word, start)
        self.unet = bundle.diffusion.network
        # An embedding, which the loop decays no weights of: decay would pull the vectors away from all other words.
        self.module = self.vectors = nn.Embedding.from_pretrained(start, freeze=False)
        self._current = self.vectors
        embedding = self.text.network.text_model.embeddings.token_embedding
        embedding.register_forward_hook(self._replace)

    @contextmanager
    def using(self, module: nn.Module) -> Iterator[nn.Module]:
        assert isinstance(module, nn.Embedding)
        self._current = module
        try:
            yield self.unet
        finally:
            self._current = self.vectors

    def _replace(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        place = args[0] - self.first  # B L
        rows = self._current(place.clamp(0, self.count - 1)).to(output.dtype)
        return torch.where(((place >= 0) & (place < self.count))[..., None], rows, output)


class TunedControl(Tuned):
    """A ControlNet, which begins as a copy of the U-Net's way down behind zero convolutions (Zhang et al. 2023); all
    networks of the model are locked. It is given to the U-Net by what stands in the conditioning: see `Hinted`."""

    def __init__(self, bundle: ModelBundle) -> None:
        unet = bundle.diffusion.network
        assert isinstance(unet, UNet)
        self.text = _text_of(bundle)
        self.unet = unet
        self.module = self.control = ControlNet.from_unet(unet).requires_grad_(True)

    @contextmanager
    def using(self, module: nn.Module) -> Iterator[nn.Module]:
        assert isinstance(module, ControlNet)
        before, self.control = self.control, module
        try:
            yield self.unet
        finally:
            self.control = before


def _text_of(bundle: ModelBundle) -> TextEncoder:
    if not isinstance(bundle.text, TextEncoder):
        raise RequestError(f"model {bundle.info.name} has no CLIP text encoder of its own: fine-tuning needs one")
    return bundle.text
