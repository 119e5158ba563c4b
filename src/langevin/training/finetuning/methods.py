"""Each way of fine-tuning with its usual values, which are the model's where it has them."""

from __future__ import annotations

from typing import Any, Literal, assert_never

from pydantic import ValidationError

from langevin.errors import RequestError
from langevin.training.config import LoopConfig
from langevin.training.finetuning.config import (
    ControlStage,
    DistillStage,
    DreamBoothStage,
    FullStage,
    LoraStage,
    ModelSource,
    WordStage,
)
from langevin.training.finetuning.control import ControlTuning
from langevin.training.finetuning.distill import Distillation
from langevin.training.finetuning.systems import DreamBooth, FineTuning, FullTuning, LoraTuning, TextualInversion

Method = Literal["full", "lora", "dreambooth", "textual-inversion", "controlnet", "distill"]


_OPTIONS = {"dreambooth": ("all-weights",), "controlnet": ("hint",), "distill": ("all-weights",)}
"""That may be given, beside --prompt and what has to be."""


def fine_tuning(
    method: Method,
    model: ModelSource,
    *,
    prompt: str | None = None,
    class_prompt: str | None = None,
    word: str | None = None,
    start: str | None = None,
    all_weights: bool = False,
    hint: str | None = None,
) -> FineTuning:
    """The configuration of a way of fine-tuning with its usual values; size and guidance are those of the
    model.

    prompt: what is said of each picture. class_prompt: DreamBooth needs it. word, start: textual inversion needs them.
    all_weights: DreamBooth or distillation without LoRA. hint: of a ControlNet. CheckpointError where the model does
    not open, RequestError where something is missing or has no meaning for the method.
    """
    given = {
        "prompt": prompt, "class-prompt": class_prompt, "word": word, "start": start, "all-weights": all_weights,
        "hint": hint,
    }  # fmt: skip
    needed = {"dreambooth": ("prompt", "class-prompt"), "textual-inversion": ("word", "start")}.get(method, ())
    allowed = {*needed, "prompt", *_OPTIONS.get(method, ())}
    for name, value in given.items():
        if name in needed and not value:
            raise RequestError(f"finetune {method} needs --{name}; docs/finetuning.md has an example")
        if name not in allowed and value:
            raise RequestError(f"--{name} has no meaning for finetune {method}: leave it out")
    _, checkpoint = model.find()
    defaults = checkpoint.config.defaults
    common: dict[str, Any] = {"data": {"size": min(defaults.width, defaults.height)}, "model": model}
    stage: dict[str, Any] = {"guidance": defaults.guidance} | ({"prompt": prompt} if prompt else {})
    try:
        match method:
            case "full":
                return FullTuning(**common, full=FullStage(**stage, caption_dropout=0.1, loop=_loop(2000, 1e-5)))
            case "lora":
                return LoraTuning(**common, lora=LoraStage(**stage, loop=_loop(1000, 1e-4)))
            case "dreambooth":
                stage |= {"class_guidance": defaults.guidance, "class_steps": defaults.steps}
                stage |= {"lora": None, "loop": _loop(800, 5e-6)} if all_weights else {"loop": _loop(800, 1e-4)}
                return DreamBooth(**common, dreambooth=DreamBoothStage(**stage, class_prompt=class_prompt or ""))
            case "textual-inversion":
                part = WordStage(**stage, word=word or "", start=start or "", loop=_loop(2000, 5e-3))
                return TextualInversion(**common, inversion=part)
            case "controlnet":
                stage |= {"hint": hint} if hint else {}
                return ControlTuning(**common, controlnet=ControlStage(**stage, loop=_loop(5000, 1e-5)))
            case "distill":
                stage |= {"lora": None, "loop": _loop(5000, 1e-5)} if all_weights else {"loop": _loop(5000, 1e-4)}
                return Distillation(**common, distill=DistillStage(**stage))
            case _:
                assert_never(method)
    except ValidationError as error:
        first = error.errors()[0]
        name, message = str(first["loc"][-1]).replace("_", "-"), first["msg"].removeprefix("Value error, ")
        raise RequestError(f"--{name} {first['input']!r}: {message}") from None


def _loop(steps: int, learning_rate: float) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch_size=4, learning_rate=learning_rate, warmup=50, weight_decay=0.0, ema_decay=0.99,
        save_every=250, sample_every=250,
    )  # fmt: skip
