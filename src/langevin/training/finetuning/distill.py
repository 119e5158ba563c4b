"""Distilling a model into one that needs few steps: a system of one stage, as the others of fine-tuning."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

from langevin.checkpoints.checkpoint import Checkpoint
from langevin.checkpoints.lora_defaults import LoraDefaults
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.training.data import PictureSet
from langevin.training.finetuning.config import DistillStage
from langevin.training.finetuning.files import stored_dtype, write_adapters, write_model
from langevin.training.finetuning.parts import Tuned, TunedLora, TunedWeights
from langevin.training.finetuning.systems import FineTuning, identity_of, with_prompts
from langevin.training.loop import Objective
from langevin.training.objectives.consistency import ConsistencyObjective


class Distillation(FineTuning):
    """A consistency model, as a LoRA or in all weights (Luo et al. 2023)."""

    distill: DistillStage
    name: ClassVar[str] = "distill"
    trial: ClassVar[tuple[str, ...]] = (
        "distill.solver_steps=1",
        "distill.lora.rank=2",
        'distill.preview_prompts=["a"]',
    )

    def tuned(self, bundle: ModelBundle) -> Tuned:
        part = self.distill
        return TunedWeights(bundle, text=False) if part.lora is None else TunedLora(bundle, part.lora)

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        bundle, checkpoint = self._open(device)
        self._check(bundle)
        tuned = self.tuned(bundle)
        unet = bundle.diffusion.network
        return ConsistencyObjective(
            tuned,
            self._diffusion(bundle, tuned, with_prompts(data, self._said), self.seed, run, device),
            tuned.resting if isinstance(tuned, TunedLora) else lambda: nullcontext(unet),
            self.distill,
            facts={"model": identity_of(checkpoint)},
        )

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        few = LoraDefaults(sampler="lcm", steps=self.distill.steps, guidance=1.0)
        if isinstance(tuned, TunedLora):
            return write_adapters(tuned, bundle, run, metadata=few.metadata(), dtype=stored_dtype(bundle))
        assert isinstance(tuned, TunedWeights)
        defaults = dataclasses.replace(checkpoint.config.defaults, **dataclasses.asdict(few))
        return write_model(tuned, checkpoint, run / "model.safetensors", defaults)

    def _check(self, bundle: ModelBundle) -> None:
        super()._check(bundle)
        count = len(bundle.diffusion.schedule)
        for name, value in (("skip", self.distill.skip), ("steps", self.distill.steps)):
            if value >= count:
                raise RequestError(
                    f"distill.{name} {value}: the schedule of {bundle.info.name} has {count} timesteps: set it lower"
                )
