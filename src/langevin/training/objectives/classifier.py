"""Classification: cross-entropy of the labels, and the share of held-out pictures that are named right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.errors import DataError
from langevin.images.grids import save_grid
from langevin.networks.classifier import Classifier
from langevin.training.data import PictureSet
from langevin.training.randomness import sample_generators

_BATCH = 250


class Split:
    """The pictures that are trained on and those that are held out, by a field of their records."""

    def __init__(self, data: PictureSet, held_out: Mapping[str, tuple[str, ...]]) -> None:
        """held_out: a picture is held out if each of these fields has one of the values.

        Raises DataError where a picture has no label, or either side is empty.
        """
        unlabelled = next((i for i, r in enumerate(data.records) if not _is_label(r.get("label"))), None)
        if unlabelled is not None:
            raise DataError(
                f"picture {unlabelled} (caption {str(data.records[unlabelled]['caption'])[:40]!r}) has no label: a "
                "classifier needs class folders, idx files, or records with a whole number `label`"
            )
        out = [bool(held_out) and all(str(r.get(k)) in v for k, v in held_out.items()) for r in data.records]
        self.train = [i for i, o in enumerate(out) if not o]
        self.test = [i for i, o in enumerate(out) if o]
        if not self.train or not self.test:
            side = "trained on" if not self.train else "held out"
            raise DataError(f"no picture would be {side}: held_out={dict(held_out)} does not fit the data's records")
        self.labels = torch.tensor([int(r["label"]) for r in data.records])


class ClassifierObjective:
    """Cross-entropy; each picture moved by up to two pixels and mirrored half of the time, as the sample decides."""

    def __init__(
        self,
        network: Classifier,
        data: PictureSet,
        held_out: Mapping[str, tuple[str, ...]],
        *,
        seed: int,
        shift: int,
        mirror: bool,
        device: str,
    ) -> None:
        """Raises DataError as `Split` does, and where a label is beyond the network's classes."""
        self.split = Split(data, held_out)
        highest = int(self.split.labels.max())
        if highest >= network.config.classes:
            raise DataError(f"labels go up to {highest}: set classifier.network.classes to {highest + 1} or more")
        self.module: nn.Module = network.to(device)
        self.network = network
        self.data = data
        self.held_out = dict(held_out)
        self.seed = seed
        self.shift = shift
        self.mirror = mirror
        self.device = device

    @property
    def count(self) -> int:
        return len(self.split.train)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint,
            "held_out": {k: list(v) for k, v in self.held_out.items()},
            "shift": self.shift,
            "mirror": self.mirror,
        }

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = [self.split.train[i] for _, i in samples]
        images = self.data.images(chosen)
        moved = [
            self._augmented(image, g)
            for image, g in zip(images, sample_generators(self.seed, "augment", step, samples), strict=True)
        ]
        logits = self.network(torch.stack(moved).to(self.device)).logits.float()
        labels = self.split.labels[chosen].to(self.device)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"accuracy": right}

    def _augmented(self, image: Tensor, g: torch.Generator) -> Tensor:
        dy, dx = (int(v) for v in torch.randint(-self.shift, self.shift + 1, (2,), generator=g))
        mirrored = self.mirror and float(torch.rand((), generator=g)) < 0.5
        height, width = image.shape[1:]
        # What leaves on one side is filled by repeating the edge on the other.
        rows = (torch.arange(height) + dy).clamp(0, height - 1)
        columns = (torch.arange(width) + dx).clamp(0, width - 1)
        moved = image[:, rows][:, :, columns]
        return moved.flip(2) if mirrored else moved

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """A row for each class (at most sixteen): the held-out pictures most surely taken for it."""
        assert isinstance(module, Classifier)
        some = self.split.test[:: max(1, len(self.split.test) // 1000)]
        certain = predict(module, self.data, some, self.device).softmax(1)  # N K
        images = self.data.images(some)
        columns = min(12, len(some))
        best = certain.topk(columns, dim=0).indices.T[:16].flatten()
        save_grid(path, images[best], columns=columns)


@torch.no_grad()
def predict(network: Classifier, data: PictureSet, indices: list[int], device: str) -> Tensor:
    """Logits of some of the pictures, float32 [N, K] on the CPU."""
    parts = [indices[i : i + _BATCH] for i in range(0, len(indices), _BATCH)]
    return torch.cat([network(data.images(part).to(device)).logits.float().cpu() for part in parts])


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
