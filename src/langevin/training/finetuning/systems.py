"""The ways to tune a model. Each is a system of one stage, whose options are the field of its name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from langevin.checkpoints.checkpoint import Checkpoint
from langevin.checkpoints.config import Defaults
from langevin.checkpoints.loader import build, with_prediction
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.training.caching import CacheConfig
from langevin.training.captions import CaptionConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.finetuning.config import (
    DreamBoothStage,
    FullStage,
    LoraStage,
    ModelSource,
    TuningStage,
    WordStage,
)
from langevin.training.finetuning.files import write_adapters, write_model, write_word
from langevin.training.finetuning.parts import Tuned, TunedLora, TunedWeights, TunedWord
from langevin.training.finetuning.prior import make_prior, read_prior
from langevin.training.loop import Objective
from langevin.training.objectives.beside import Beside
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.tuning import TuningObjective
from langevin.training.objectives.weighting import Weighting
from langevin.training.randomness import seed_for
from langevin.training.system import System

_NAMES = ("full", "lora", "dreambooth", "inversion", "controlnet", "distill")
"""Of the stages."""


class FineTuning(System):
    """A loaded model with a part of it that trains."""

    model: ModelSource = ModelSource()
    captions: CaptionConfig = CaptionConfig(style_share=0.0, keyword_share=0.0, article_share=0.0)
    """How a picture's prompt is rephrased, with the record's keywords and style; by default not at all."""
    cache: CacheConfig = CacheConfig()
    """Where encoded pictures are kept."""

    name: ClassVar[str]
    """Of the stage, and of the field with its options."""
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(_NAMES, ("model", "captions"))
    free: ClassVar[frozenset[str]] = frozenset(
        # Where the model lies may change: checkpoints know the hash of its files.
        {"model.path", "model.revision", "model.config", "controlnet.tolerance", "distill.steps"}
        | {f"{name}.preview_prompts" for name in _NAMES}
        | {f"{name}.guidance" for name in _NAMES if name != "distill"}  # the teacher's: what is trained has it in it
    )

    @property
    def stage(self) -> TuningStage:
        stage: TuningStage = getattr(self, self.name)
        return stage

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {self.name: self.stage.loop}

    @abstractmethod
    def tuned(self, bundle: ModelBundle) -> Tuned:
        """The model with the part of it that trains."""

    @abstractmethod
    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        """Write what was trained; returns the path of the (main) file."""

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        bundle, checkpoint = self._open(device)
        self._check(bundle)
        tuned = self.tuned(bundle)
        return TuningObjective(
            tuned,
            self._diffusion(bundle, tuned, with_prompts(data, self._said), self.seed, run, device),
            seed=self.seed,
            facts={"model": identity_of(checkpoint)},
            **self._prior(bundle, tuned, run, device),
        )

    def finish(self, data: PictureSet, run: Path) -> Path:
        """Write the averaged weights of what was trained, in the formats of the page docs/finetuning.md."""
        bundle, checkpoint = self._open("cpu")
        tuned = self.tuned(bundle)
        load_ema(run / self.name / "checkpoints", tuned.module)
        return self.write(tuned, bundle, checkpoint, run)

    def _said(self, caption: str) -> str:
        return self.stage.prompt.replace("{caption}", caption)

    def _defaults(self, checkpoint: Checkpoint) -> Defaults:
        """Of a finished model: those that it had, with the stage's guidance."""
        return dataclasses.replace(checkpoint.config.defaults, guidance=self.stage.guidance)

    def _prior(self, bundle: ModelBundle, tuned: Tuned, run: Path, device: str) -> dict[str, Any]:
        """`TuningObjective`'s arguments for prior preservation."""
        return {}

    def _open(self, device: str) -> tuple[ModelBundle, Checkpoint]:
        """The model in float32, and the files that it came from, with the prediction type known."""
        found, checkpoint = self.model.find()
        bundle = build(checkpoint, found, torch.float32, device)
        if checkpoint.config.prediction is None:
            checkpoint = with_prediction(checkpoint, bundle.info.prediction)
        return bundle, checkpoint

    def _check(self, bundle: ModelBundle) -> None:
        if bundle.info.task != "text-to-image" or bundle.autoencoder is None or bundle.text is None:
            what = bundle.info.task if bundle.info.task != "text-to-image" else "without text or latents"
            raise RequestError(f"model {bundle.info.name} is for {what}: fine-tuning takes text-to-image models")
        sizes = {"data.size": self.data.size}
        if self.data.buckets is not None:
            sizes["data.buckets.grid"] = self.data.buckets.grid
        for name, value in sizes.items():
            if value % bundle.autoencoder.downsampling:
                raise RequestError(
                    f"{name} {value} is not a multiple of {bundle.autoencoder.downsampling}, by which "
                    f"{bundle.info.name} makes pictures smaller: --set {name}=N"
                )

    def _diffusion(
        self,
        bundle: ModelBundle,
        tuned: Tuned,
        data: PictureSet,
        seed: int,
        run: Path,
        device: str,
        beside: Beside | None = None,
    ) -> DiffusionObjective:
        assert bundle.autoencoder is not None
        stage = self.stage
        return DiffusionObjective(
            dataclasses.replace(bundle.diffusion, network=tuned.unet),
            bundle.autoencoder,
            tuned.text,
            data,
            Latents(bundle.autoencoder.network, data, device, self.cache, run),
            self.captions,
            seed=seed,
            caption_dropout=stage.caption_dropout,
            denoising=stage.denoising(_simple(bundle.diffusion.prediction)),
            preview_prompts=stage.preview_prompts or _some_captions(data),
            preview_guidance=stage.guidance,
            device=device,
            beside=beside,
            trains_text=tuned.trains_text,
        )


class FullTuning(FineTuning):
    """All weights of the U-Net, and of the text tower if wanted."""

    full: FullStage
    name: ClassVar[str] = "full"

    def tuned(self, bundle: ModelBundle) -> Tuned:
        return TunedWeights(bundle, text=self.full.text)

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        assert isinstance(tuned, TunedWeights)
        return write_model(tuned, checkpoint, run / "model.safetensors", self._defaults(checkpoint))


class LoraTuning(FineTuning):
    """Low-rank adapters."""

    lora: LoraStage
    name: ClassVar[str] = "lora"

    def tuned(self, bundle: ModelBundle) -> Tuned:
        return TunedLora(bundle, self.lora)

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        assert isinstance(tuned, TunedLora)
        return write_adapters(tuned, bundle, run)


class DreamBooth(FineTuning):
    """A subject from a few pictures, with the model's own pictures of its class beside them (Ruiz et al. 2023)."""

    dreambooth: DreamBoothStage
    name: ClassVar[str] = "dreambooth"

    def prepare(self, run: Path, device: str) -> Generator[tuple[str, int, int]]:
        yield from make_prior(lambda: self._open(device)[0], self._prior_folder(run), self.dreambooth, self.data.size)

    def tuned(self, bundle: ModelBundle) -> Tuned:
        part = self.dreambooth
        if part.lora is None:
            return TunedWeights(bundle, text=part.text)
        if part.text:
            raise RequestError('dreambooth.text is for all weights; with LoRA add "text" to dreambooth.lora.targets')
        return TunedLora(bundle, part.lora)

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        if isinstance(tuned, TunedLora):
            return write_adapters(tuned, bundle, run)
        assert isinstance(tuned, TunedWeights)
        return write_model(tuned, checkpoint, run / "model.safetensors", self._defaults(checkpoint))

    def _prior(self, bundle: ModelBundle, tuned: Tuned, run: Path, device: str) -> dict[str, Any]:
        pictures = read_prior(self._prior_folder(run), self.dreambooth)
        seed = seed_for(self.seed, "prior")  # its noise is not the subject's
        return {
            "prior": self._diffusion(bundle, tuned, pictures, seed, run, device),
            "prior_weight": self.dreambooth.prior_weight,
        }

    def _prior_folder(self, run: Path) -> Path:
        return run / "class-pictures"


class TextualInversion(FineTuning):
    """A new word (Gal et al. 2022)."""

    inversion: WordStage
    name: ClassVar[str] = "inversion"

    def tuned(self, bundle: ModelBundle) -> Tuned:
        part = self.inversion
        return TunedWord(bundle, part.word, part.vectors, part.start)

    def _said(self, caption: str) -> str:
        # The caption last: what stands in it is not looked at.
        return self.stage.prompt.replace("{word}", self.inversion.word).replace("{caption}", caption)

    def write(self, tuned: Tuned, bundle: ModelBundle, checkpoint: Checkpoint, run: Path) -> Path:
        assert isinstance(tuned, TunedWord)
        return write_word(tuned, self.inversion.word, run)


def with_prompts(data: PictureSet, said: Callable[[str], str]) -> PictureSet:
    """The data set with `said(caption)` for each record's caption."""
    changed = copy.copy(data)
    changed.records = [
        {**record, "caption": said(str(record["caption"]))}
        | ({"captions": [said(str(text)) for text in record["captions"]]} if record.get("captions") else {})
        for record in data.records
    ]
    return changed


def _simple(prediction: Prediction) -> Weighting:
    """The prediction type's own simple loss. That of x0 would leave all but the largest noise levels out."""
    return Weighting.SNR if prediction is Prediction.EPSILON else Weighting.SNR_PLUS_ONE


def _some_captions(data: PictureSet) -> tuple[str, ...]:
    """Four of them, at equal distances, each once."""
    chosen = torch.linspace(0, len(data) - 1, 4).long().tolist()
    return tuple(dict.fromkeys(str(data.records[i]["caption"]) for i in chosen))


def identity_of(checkpoint: Checkpoint) -> str:
    """One hash for all files of a model, whatever they are called."""
    return hashlib.sha256("".join(sorted(file.sha256 for file in checkpoint.files)).encode()).hexdigest()
