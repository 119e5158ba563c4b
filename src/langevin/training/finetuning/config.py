"""What a fine-tuning run is told: which model, and each way's own options."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from langevin.checkpoints.checkpoint import Checkpoint
from langevin.checkpoints.loader import Source, locate, open_checkpoint
from langevin.training.config import Config, LoopConfig
from langevin.training.finetuning.parts import LoraOptions, LoraTarget
from langevin.training.objectives.denoising import DenoisingConfig
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.objectives.weighting import Weighting


class ModelSource(Config):
    """Which model is tuned, with the options of `langevin.load`."""

    path: str | None = None
    """A file, a diffusers folder, a name in $LANGEVIN_MODELS or a Hub id; null is the model inside the package."""
    revision: str | None = None
    prediction: Literal["epsilon", "v", "x0"] | None = None
    """What the network predicts, for files that do not say it."""
    config: str | None = None
    """YAML or JSON file that says what the weights do not."""
    ema: bool | Literal["auto"] = "auto"
    """Whether training begins from the averaged weights of a file that has both; auto: where it has them."""
    allow_pickle: bool = False

    def find(self) -> tuple[Source, Checkpoint]:
        """The files, understood but not read. CheckpointError as the loader."""
        found = locate(self.path, revision=self.revision, ema=self.ema, allow_pickle=self.allow_pickle)
        checkpoint = open_checkpoint(
            found.path,
            prediction=self.prediction,
            config=self.config,
            ema=self.ema,
            allow_pickle=self.allow_pickle,
        )
        return found, checkpoint


class TuningStage(Config):
    """What every way of fine-tuning is told."""

    prompt: str = "{caption}"
    """What is said of each picture; {caption} is what its record says."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """How often the prompt is left empty, which trains the model that guidance leads away from."""
    weighting: Weighting | None = None
    """Of the noise levels in the loss; null: every level counts alike in the error of what the model predicts."""
    gamma: float | None = Field(None, gt=0)
    """Of the weightings min_snr, soft_min_snr and p2; null is the published value."""
    levels: LevelConfig = LevelConfig()
    """How noise levels are drawn: uniform, log_normal or grid."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Deviation of noise that is the same for all pixels of a channel: pictures get darker and brighter as a whole."""
    input_perturbation: float = Field(0.0, ge=0, le=1)
    """Deviation, in units of sigma, of noise that the target does not know of."""
    preview_prompts: tuple[str, ...] = ()
    """None: what is said of four of the pictures."""
    guidance: float = Field(7.5, ge=1)
    """Of the previews; where all weights train, also the default of the finished model."""
    loop: LoopConfig

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, text: str) -> str:
        return check_template(text, "caption")

    @model_validator(mode="after")
    def _parameters_are_used(self) -> TuningStage:
        self.denoising(self.weighting or Weighting.SNR)
        return self

    @field_validator("levels")
    @classmethod
    def _learns_nothing(cls, levels: LevelConfig) -> LevelConfig:
        # What importance sampling learns would have to stand in the checkpoints beside adapters and words.
        if levels.name is LevelSampling.IMPORTANCE:
            raise ValueError("importance is for training from scratch: fine-tuning takes uniform, log_normal or grid")
        return levels

    def denoising(self, weighting: Weighting) -> DenoisingConfig:
        """The loss, with a weighting where none is chosen."""
        return DenoisingConfig(
            weighting=self.weighting or weighting,
            gamma=self.gamma,
            levels=self.levels,
            noise_offset=self.noise_offset,
            input_perturbation=self.input_perturbation,
        )


def check_template(text: str, *known: str) -> str:
    """`text` itself. ValueError where it holds other names in braces, or nothing."""
    for name in re.findall(r"{([^{}]*)}", text):
        if name not in known:
            raise ValueError(f"{{{name}}} is not known; there is {', '.join(f'{{{n}}}' for n in known)}")
    if not text.strip():
        raise ValueError("it is empty")
    return text


class FullStage(TuningStage):
    text: bool = False
    """Whether the text tower trains too."""


class LoraStage(TuningStage, LoraOptions):
    pass


class DreamBoothStage(TuningStage):
    lora: LoraOptions | None = LoraOptions()
    """null: all weights of the U-Net train."""
    text: bool = False
    """Whether the text tower trains too; with `lora`, its targets say it."""
    class_prompt: str = Field(min_length=1)
    """What the model is to keep: the prompt without the name of the subject."""
    class_pictures: int = Field(200, ge=1)
    """How many pictures of the class the model makes of itself before training; picture i has the seed
    `class_seed` + i."""
    class_seed: int = Field(0, ge=0)
    class_steps: int = Field(30, ge=1, le=1000)
    class_guidance: float = Field(7.5, ge=1)
    prior_weight: float = Field(1.0, ge=0)
    """Of the class pictures' loss beside the subject's: lambda of Ruiz et al. 2023."""


class ControlStage(TuningStage):
    caption_dropout: float = Field(0.5, ge=0, le=1)
    """How often the prompt is left empty, so that the ControlNet learns to read the hint by itself: a half in Zhang et
    al. 2023."""
    hint: str = "canny"
    """What makes each picture's hint, a name in `langevin.images.hints`; or a folder with a hint for each picture, of
    the same name."""
    held_out: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Pictures that are not trained on: those whose record has one of the values in each of these fields. Empty:
    `measured` of them at equal distances."""
    measured: int = Field(8, ge=1, le=256)
    """On how many of the held-out pictures, at equal distances, losses and edges are measured with every preview."""
    tolerance: int = Field(1, ge=0, le=16)
    """By how many pixels an edge may be off: see `langevin.evaluation.edges`."""
    preview_prompts: tuple[str, ...] = ()
    """What is made of the held-out pictures' hints, in turn; [""] is nothing but the hint. None: of each what is said
    of its picture, which tells little where the model knows the picture by that."""


class DistillStage(TuningStage):
    """Levels are those that the student learns at. `weighting` acts on the error of f; null: every level alike."""

    lora: LoraOptions | None = LoraOptions(
        rank=64, alpha=64.0, targets=(LoraTarget.TRANSFORMER, LoraTarget.CONVOLUTION)
    )
    """null: all weights of the U-Net train."""
    guidance: float = Field(7.5, ge=1)
    """Of the teacher; it becomes part of what is trained, which is sampled with guidance 1."""
    skip: int = Field(20, ge=1)
    """How many timesteps of the schedule the teacher goes down for the target: k of Luo et al. 2023, section 4.3."""
    solver: Literal["euler", "heun"] = "euler"
    """How the teacher goes there: euler is DDIM; heun calls it twice a step."""
    solver_steps: int = Field(1, ge=1, le=50)
    """In how many steps."""
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = Field(0.001, gt=0)
    """Of the loss huber: differences below it count by their squares."""
    steps: int = Field(4, ge=1, le=50)
    """Of the previews, and the default of the finished file, as are the sampler `lcm` and guidance 1."""

    @model_validator(mode="after")
    def _takes_part(self) -> DistillStage:
        if self.lora is not None and LoraTarget.TEXT in self.lora.targets:
            raise ValueError('lora.targets: the text tower is the teacher\'s too: leave "text" out')
        if self.input_perturbation:
            raise ValueError(f"input_perturbation {self.input_perturbation} has no meaning here: leave it at 0")
        return self


class WordStage(TuningStage):
    prompt: str = "{word}, {caption}"
    """What is said of each picture; {caption} is what its record says, {word} the new word."""
    word: str = Field(min_length=1)
    """The new word, as <style>."""
    vectors: int = Field(1, ge=1, le=75)
    """How many vectors it has: as many tokens it takes in a prompt."""
    start: str = Field(min_length=1)
    """Words whose vectors the new ones begin as, in turn."""

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, text: str) -> str:
        if "{word}" not in check_template(text, "caption", "word"):
            raise ValueError("{word} is not in it")
        return text
