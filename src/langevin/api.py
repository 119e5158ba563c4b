"""What `import langevin` offers: load a model, generate pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langevin.checkpoints.additions import add_embedding, add_lora
from langevin.checkpoints.steering import add_ip_adapter, add_steering
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.tasks.from_picture import image_to_image
from langevin.tasks.from_text import text_to_image
from langevin.tasks.image_requests import ImageToImageRequest, InpaintRequest, OutpaintRequest
from langevin.tasks.inpainting import inpaint
from langevin.tasks.opening import open_bundle
from langevin.tasks.outpainting import outpaint
from langevin.tasks.pictures import Given
from langevin.tasks.plan import Plan
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.tasks.runner import Result, Run, run


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Several threads may use one at the same time: nothing in it changes."""

    bundle: ModelBundle

    @property
    def info(self) -> CheckpointInfo:
        """What the model is and where it came from."""
        return self.bundle.info

    def with_lora(self, path: str | Path, strength: float = 1.0) -> Model:
        """This model with a LoRA file merged into its weights; this one stays as it is, and several may be put on top
        of each other. strength: 1 is as it was trained, 0 changes nothing. Raises CheckpointError for a file that does
        not fit."""
        return Model(add_lora(self.bundle, path, strength))

    def with_embedding(self, path: str | Path, word: str | None = None) -> Model:
        """This model with the word of a textual-inversion file, to be used in prompts; `word` calls it otherwise than
        the file does. Raises CheckpointError for a file that does not fit, RequestError for a word that is taken."""
        return Model(add_embedding(self.bundle, path, word))

    def with_controlnet(self, path: str | Path, *, allow_pickle: bool = False) -> Model:
        """This model with a ControlNet or T2I-Adapter beside it, through which the next hint of
        `langevin.tasks.control` acts. path: a file, a diffusers folder or a Hub id. Raises CheckpointError for one of
        another model."""
        return Model(add_steering(self.bundle, path, allow_pickle=allow_pickle))

    def with_ip_adapter(
        self, path: str | Path, encoder: str | Path | None = None, *, allow_pickle: bool = False
    ) -> Model:
        """This model with an IP-Adapter beside it, through which the next picture among the `prompts` of
        `langevin.tasks.control` acts. encoder: CLIP's image tower, a folder or a file; None is the folder
        `image_encoder` beside the adapter. Raises CheckpointError for one of another model."""
        return Model(add_ip_adapter(self.bundle, path, encoder, allow_pickle=allow_pickle))

    def plan(self, prompt: str | None = None, **options: Any) -> Plan:
        """What `generate` would run. Options are those of `GenerateRequest`; raises RequestError."""
        return text_to_image(self.bundle, GenerateRequest(prompt=prompt, **options))

    def generate(
        self, prompt: str | None = None, *, preview: Callable[[Run], None] | None = None, **options: Any
    ) -> Result:
        """Pictures from a text; with models of classes, from `label=`, a name or a number.

        Options are those of `GenerateRequest`: steps, sampler, guidance, seed, count, width, height ... `preview` is
        called after every step with the run: `run.progress`, `run.step`, `run.preview()`; raise in it to stop.
        Raises RequestError for options that do not fit, NotFiniteError where the weights are broken.
        """
        running = run(self.plan(prompt, **options))
        for _ in running:
            if preview is not None:
                preview(running)
        return running.finish()

    def img2img(self, picture: Given, prompt: str | None = None, **options: Any) -> Result:
        """Variations of a picture (PIL or a path) by a text. Options are those of `ImageToImageRequest`."""
        return run(image_to_image(self.bundle, picture, ImageToImageRequest(prompt=prompt, **options))).finish()

    def inpaint(
        self, picture: Given, prompt: str | None = None, *, mask: Given | None = None, **options: Any
    ) -> Result:
        """A picture with a part painted anew, white in the mask. Options are those of `InpaintRequest`."""
        return run(inpaint(self.bundle, picture, InpaintRequest(prompt=prompt, **options), mask=mask)).finish()

    def outpaint(self, picture: Given, prompt: str | None = None, **options: Any) -> Result:
        """A picture continued beyond its edges. Options are those of `OutpaintRequest`."""
        return run(outpaint(self.bundle, picture, OutpaintRequest(prompt=prompt, **options))).finish()


def load(model: str | Path | None = None, **options: Any) -> Model:
    """Loads a model: a single file, a diffusers folder, a Hub id (`owner/name`), or, with None, the one inside the
    package.

    Options are those of `ModelOptions`: dtype ("float32", "bfloat16", "float16"), device, revision, prediction, ema,
    allow_pickle, lora, embedding. Raises RequestError for an option that does not fit, CheckpointError for a file that
    does not.
    """
    return Model(open_bundle(ModelOptions(model=None if model is None else str(model), **options)))
