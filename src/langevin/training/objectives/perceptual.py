"""Perceptual terms: how far two pictures are apart in the features of a frozen network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from langevin.checkpoints.classifier_file import read_classifier
from langevin.checkpoints.clip_files import load_clip
from langevin.checkpoints.lpips_file import load_lpips
from langevin.checkpoints.places import identity
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.transfer import fit, load_into
from langevin.errors import CheckpointError
from langevin.networks.classifier import Block
from langevin.networks.clip import ClipImage, ClipImageConfig
from langevin.networks.lpips import mean_distance
from langevin.training.config import Config

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pictures a, b (B 3 H W in [-1, 1]) to float32 [B], 0 for equal ones. Gradients reach the pictures alone."""


class Features(StrEnum):
    """Whose features."""

    CLIP = "clip"
    """The states of all layers of a CLIP image tower: this run's own, or another's. Nothing has to be downloaded."""
    CLASSIFIER = "classifier"
    """The maps of all levels of a small classifier that was trained here on the same kind of pictures."""
    LPIPS = "lpips"
    """VGG-16 with the learned weights of Zhang et al. 2018, from files of the user's."""

    @property
    def files(self) -> range:
        """How many files it takes."""
        match self:
            case Features.CLIP:
                return range(2)
            case Features.CLASSIFIER:
                return range(1, 2)
            case Features.LPIPS:
                return range(1, 3)
            case _:
                assert_never(self)


class PerceptualConfig(Config):
    """A perceptual term beside the errors of pixels."""

    features: Features = Features.CLIP
    weight: float = Field(1.0, gt=0)
    """Of the distance, beside the mean absolute error of pixels."""
    files: tuple[Path, ...] = ()
    """clip: the `clip.safetensors` of a run or a Hugging Face folder; none means this run's own, which is then trained
    first. classifier: the `model.safetensors` of a classifier's run. lpips: one file with everything, or VGG-16 and
    the heads."""
    allow_pickle: bool = False
    """Read .pth and .bin files too, which can carry programs; docs/checkpoints.md."""

    @model_validator(mode="after")
    def _fits(self) -> PerceptualConfig:
        if len(self.files) not in self.features.files:
            allowed = " or ".join(map(str, self.features.files))
            raise ValueError(f"files: {len(self.files)} given, features {self.features.value} takes {allowed}")
        return self

    @property
    def needs_own_clip(self) -> bool:
        """Whether the run's own CLIP has to be trained first."""
        return self.features is Features.CLIP and not self.files


class Perceptual:
    """A distance with what has to be the same when a run is resumed."""

    def __init__(self, distance: Distance, weight: float, facts: dict[str, Any]) -> None:
        self.distance = distance
        self.weight = weight
        self.facts = {"weight": weight, **facts}


def make_perceptual(
    config: PerceptualConfig, own: Callable[[], tuple[ClipImage, str]] | None, size: int, device: str
) -> Perceptual:
    """The term that `config` asks for. own: loads the run's own image tower; size: of the pictures, in pixels.

    Raises CheckpointError where what it needs is not there or does not fit.
    """
    match config.features:
        case Features.CLIP:
            distance, sha256 = _clip(config, own, device)
        case Features.CLASSIFIER:
            network, facts = read_classifier(config.files[0], device)
            if facts.network.size != size:
                raise CheckpointError(
                    f"{config.files[0]} was trained at {facts.network.size} pixels, the pictures here have {size}"
                )
            levels = [name for name, module in network.named_modules() if isinstance(module, Block)]
            distance, sha256 = LayerDistance(network, levels), _sha256(config.files[0])
        case Features.LPIPS:
            if size < 16:
                raise CheckpointError(f"pictures of {size} pixels are too small for LPIPS: at least 16 are needed")
            distance = load_lpips(config.files, device, allow_pickle=config.allow_pickle)
            sha256 = "".join(_sha256(path) for path in config.files)
        case _:
            assert_never(config.features)
    return Perceptual(distance, config.weight, {"features": config.features.value, "sha256": sha256})


def _clip(
    config: PerceptualConfig, own: Callable[[], tuple[ClipImage, str]] | None, device: str
) -> tuple[Distance, str]:
    if config.files:
        clip = load_clip(config.files[0], device, allow_pickle=config.allow_pickle)
        return ClipDistance(clip.image, mean=clip.config.mean, deviation=clip.config.deviation), clip.sha256
    if own is None:
        raise ValueError("there is no clip stage here: perceptual.files must name another run's clip.safetensors")
    tower, sha256 = own()
    return ClipDistance(tower.to(device)), sha256


class ClipDistance:
    """`mean_distance` over the states of the patches after each layer of a CLIP image tower."""

    def __init__(
        self,
        tower: ClipImage,
        *,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        deviation: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        """mean, deviation: of pixels from 0 to 1, as the tower was trained. The defaults leave [-1, 1] as it is, which
        is what the towers trained here take."""
        self.tower = tower.requires_grad_(False).eval()
        device = next(tower.parameters()).device
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._deviation = torch.tensor(deviation, device=device).view(-1, 1, 1)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: B 3 H W in [-1, 1]; other sizes than the tower's are brought to it by antialiased interpolation."""
        return mean_distance(self.states(a), self.states(b), dim=2)

    def states(self, images: Tensor) -> list[Tensor]:
        """B N D after each layer, the class token left out."""
        size = (self.tower.config.image_size, self.tower.config.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        network = self.tower.vision_model
        x = network.pre_layrnorm(network.embeddings(((images + 1) / 2 - self._mean) / self._deviation))
        found = []
        for layer in network.encoder.layers:
            x = layer(x)
            found.append(x[:, 1:])
        return found


class LayerDistance:
    """`mean_distance` over the maps that some layers of any network of pictures give, such as a small classifier's."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        """layers: names of modules whose outputs are B C h w. ValueError where there is no such module."""
        known = dict(network.named_modules())
        if not layers or (missing := [name for name in layers if name not in known]):
            raise ValueError(f"layers {list(layers)}: {missing[0] if layers else 'none'} is no module of the network")
        self.network = network.requires_grad_(False).eval()
        self.layers = [known[name] for name in layers]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: as the network takes them."""
        return mean_distance(self.maps(a), self.maps(b), dim=1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each of the layers gives, in the order of `layers`."""
        found: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            found[module] = output

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[layer] for layer in self.layers]


def load_image_tower(run: Path, image: ClipImageConfig, steps: int) -> tuple[ClipImage, str]:
    """The image tower of the clip stage in a run folder, averaged weights after `steps`, and their file's SHA-256.

    Raises CheckpointError where the stage is not finished or its weights are of another architecture.
    """
    weights = run / "clip" / "checkpoints" / f"{steps:08d}" / "ema.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{run / 'clip'} is not finished: train --stage clip first")
    with torch.random.fork_rng(devices=[]):  # the first weights are thrown away
        tower = ClipImage(image)
    file = SafetensorsFile(weights)
    present = [name for name in file.tensors if name.startswith(("vision_model.", "visual_projection."))]
    load_into(tower, fit("CLIP image tower", tower, file, identity(tower.state_dict()), present), torch.float32, "cpu")
    return tower, _sha256(weights)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
