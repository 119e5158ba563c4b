"""Training a ControlNet: a system of one stage, as the others of fine-tuning, with pictures that are held out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from langevin.checkpoints.checkpoint import Checkpoint
from langevin.checkpoints.diffusers_configs import controlnet_json
from langevin.errors import CheckpointError, DataError, RequestError
from langevin.model.bundle import ModelBundle
from langevin.networks.unet import UNet
from langevin.training.data import DataConfig, PictureSet
from langevin.training.finetuning.config import ControlStage
from langevin.training.finetuning.files import write_control
from langevin.training.finetuning.hints import check_hint, read_hints
from langevin.training.finetuning.parts import Tuned, TunedControl
from langevin.training.finetuning.systems import FineTuning, identity_of, with_prompts
from langevin.training.loop import Objective
from langevin.training.objectives.control import ControlObjective, Hinted


class ControlTuning(FineTuning):
    """A ControlNet (Zhang et al. 2023)."""

    controlnet: ControlStage
    name: ClassVar[str] = "controlnet"
    trial: ClassVar[tuple[str, ...]] = ("controlnet.measured=2",)

    def tuned(self, bundle: ModelBundle) -> TunedControl:
        return TunedControl(bundle)

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        part = self.controlnet
        check_hint(part.hint)
        bundle, checkpoint = self._open(device)
        self._check(bundle)
        assert bundle.autoencoder is not None
        trained, measured = held_out(with_prompts(data, self._said), part)
        tuned = self.tuned(bundle)

        def hinted(pictures: PictureSet) -> Hinted:
            assert bundle.autoencoder is not None
            hints = read_hints(part.hint, pictures, self.data.fit, self.cache, run)
            return Hinted(pictures, self.seed, hints, tuned, bundle.autoencoder.downsampling)

        return ControlObjective(
            tuned,
            self._diffusion(bundle, tuned, trained, self.seed, run, device, hinted(trained)),
            hinted(measured),
            bundle.autoencoder,
            prompts=part.preview_prompts,
            guidance=part.guidance,
            tolerance=part.tolerance,
            facts={"model": identity_of(checkpoint)},
        )

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        assert isinstance(tuned, TunedControl)
        return write_control(tuned, bundle, run)

    def _check(self, bundle: ModelBundle) -> None:
        super()._check(bundle)
        unet = bundle.diffusion.network
        assert isinstance(unet, UNet)
        try:
            controlnet_json(unet.config, 3)
        except CheckpointError as error:
            raise RequestError(f"model {bundle.info.name} gets no ControlNet: {error}") from None


def held_out(data: PictureSet, part: ControlStage) -> tuple[PictureSet, PictureSet]:
    """The pictures that are trained on, and those of the held-out ones that are measured: all of one size, never
    mirrored. DataError where there are too few of either."""
    if part.held_out:
        wanted = DataConfig(include=part.held_out)
        out = torch.tensor([wanted.wants(record) for record in data.records])
        candidates = data.subset(torch.nonzero(out).flatten()) if bool(out.any()) else None
        available = 0 if candidates is None else int(torch.bincount(candidates.bucket).max())
    else:
        candidates, available = data, int(torch.bincount(data.bucket).max())
    if candidates is None or available < part.measured:
        where = f" with held_out={part.held_out}" if part.held_out else ""
        raise DataError(
            f"controlnet.measured {part.measured}: of one size there are only {available} pictures{where}: "
            "give --set controlnet.measured=N"
        )
    chosen = candidates.some(part.measured)
    if not part.held_out:
        out = torch.zeros(len(data), dtype=torch.bool)
        out[chosen] = True
    if bool(out.all()):
        raise DataError(f"all {len(data)} pictures of the data are held out: hold out fewer, by controlnet.held_out")
    measured = candidates.subset(chosen)
    measured.flip = 0.0
    return data.subset(torch.nonzero(~out).flatten()), measured
