"""Every option of a task, once: its default, its bounds and its meaning.

Python's keyword arguments, the command line's options and the HTTP fields are all made from these definitions. This
module does not import torch.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from langevin.errors import RequestError
from langevin.tasks.options import FromList, Options, Shown, show

SamplerName = Literal[
    "ddpm",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpm2",
    "dpm2_ancestral",
    "lms",
    "plms",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "unipc",
    "lcm",
    "restart",
]
"""The keys of `langevin.diffusion.samplers.SAMPLERS` (a test compares the two)."""

GridName = Literal[
    "trailing",
    "leading",
    "linspace",
    "quadratic",
    "karras",
    "exponential",
    "polyexponential",
    "beta",
    "beta_timesteps",
    "align_your_steps",
    "simple",
    "sgm_uniform",
    "ddim_uniform",
    "distilled",
]
"""The grids of `langevin.diffusion.grids.GRIDS`, then those that only other programs have (a test compares them)."""

CompatName = Literal["langevin", "diffusers", "a1111", "comfyui", "compvis"]
"""The keys of `langevin.diffusion.compat.COMPAT` (a test compares the two)."""

MAX_SEED = 2**64 - 1
MAX_STEPS = 1000
MAX_COUNT = 10_000
SIZES = (8, 4096)
"""Least and greatest width and height in pixels."""

Pixels = Annotated[int, Field(ge=SIZES[0], le=SIZES[1])]
Sigma = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

_BY_MODEL = "the model's"
_BY_COMPAT = "the compat preset's"


class ModelOptions(Options):
    """Which model, and how it is held in memory."""

    model: Annotated[str | None, Shown("the model inside the package", "-m")] = Field(
        None,
        description="Weights: a file, a diffusers folder, a name in $LANGEVIN_MODELS or a Hub id (owner/name).",
    )
    dtype: Literal["float32", "float16", "bfloat16", "fp32", "fp16", "bf16"] = Field(
        "float32", description="Precision of the networks."
    )
    device: str = Field("cpu", description="Where the networks run: cpu, cuda, cuda:1 or mps.", max_length=40)
    revision: Annotated[str | None, Shown("main")] = Field(None, description="Branch, tag or commit of a Hub id.")
    config: Annotated[str | None, Shown("none")] = Field(
        None, description="YAML or JSON file that says what the weights do not."
    )
    prediction: Annotated[Literal["epsilon", "v", "x0"] | None, Shown("what the file says")] = Field(
        None, description="What the network predicts, for files that do not say it."
    )
    ema: Literal["auto", "yes", "no"] = Field(
        "auto", description="Take the averaged (EMA) weights of a file that has both; auto does when it has them."
    )
    allow_pickle: bool = Field(False, description="Read .ckpt, .pt and .bin files (through a restricted unpickler).")
    vae: Annotated[str | None, Shown("the model's")] = Field(
        None, description="Another autoencoder: a file, a folder, a name in $LANGEVIN_MODELS or a Hub id."
    )
    lora: Annotated[tuple[str, ...], Shown("none"), FromList] = Field(
        (),
        description="LoRA files to put into the model, as FILE or FILE:STRENGTH, or by name in $LANGEVIN_MODELS; "
        "1 is as it was trained. In a prompt: <lora:NAME:STRENGTH>.",
    )
    embedding: Annotated[tuple[str, ...], Shown("none"), FromList] = Field(
        (),
        description="Textual-inversion files whose words prompts may use, as FILE or FILE:WORD, or by name. "
        "In a prompt: embedding:NAME.",
    )

    @property
    def precision(self) -> Literal["float32", "float16", "bfloat16"]:
        """`dtype` by its full name."""
        match self.dtype:
            case "float32" | "fp32":
                return "float32"
            case "float16" | "fp16":
                return "float16"
            case "bfloat16" | "bf16":
                return "bfloat16"


class GenerateRequest(Options):
    """A picture, or several, from a text, or with models of pixels from a class or nothing."""

    prompt: Annotated[str, Field(max_length=20_000)] | None = Field(
        None,
        description="What to draw. Any length; (word:1.2) weights, [a:b:0.4] switches, BREAK starts a new chunk. "
        "Models without text take none.",
    )
    label: Annotated[Annotated[str, Field(max_length=1000)] | Annotated[int, Field(ge=0)] | None, Shown("none")] = (
        Field(None, description="Class to draw, by its name or number, with models of classes.")
    )
    negative: str = Field("", description="What to keep away from.", max_length=20_000)
    width: Annotated[Pixels | None, Shown(_BY_MODEL)] = Field(None, description="Width in pixels, any number.")
    height: Annotated[Pixels | None, Shown(_BY_MODEL)] = Field(None, description="Height in pixels, any number.")
    steps: Annotated[Annotated[int, Field(ge=1, le=MAX_STEPS)] | None, Shown(_BY_MODEL)] = Field(
        None, description="Intervals of the sigma grid."
    )
    sampler: Annotated[SamplerName | None, Shown("the model's, or dpmpp_2m")] = Field(None, description="Solver.")
    schedule: Annotated[GridName | None, Shown(_BY_COMPAT)] = Field(
        None, description="How the noise levels are spaced."
    )
    sigmas: Annotated[tuple[Sigma, ...], Field(min_length=2, max_length=MAX_STEPS + 1), FromList] | None = Field(
        None, description="The noise levels themselves, descending (instead of steps and schedule)."
    )
    eta: Annotated[Annotated[float, Field(ge=0, le=10)] | None, Shown("the sampler's")] = Field(
        None, description="Share of fresh noise, for samplers that have it."
    )
    sampler_options: Annotated[dict[str, float | int | bool | str], Shown("none")] = Field(
        {}, description="Further options of the sampler, as name=value."
    )
    guidance: Annotated[Annotated[float, Field(ge=0, le=100)] | None, Shown(_BY_MODEL, "-g")] = Field(
        None, description="Weight of classifier-free guidance; 1 is none."
    )
    rescale: float = Field(
        0.0, ge=0, le=1, description="Share of guidance rescaling (Lin et al. 2024): 0 is none, 0.7 usual."
    )
    guidance_interval: Annotated[Annotated[tuple[Sigma, Sigma], FromList] | None, Shown("everywhere")] = Field(
        None, description="Guide only at noise levels LOW to HIGH (sigma)."
    )
    seed: Annotated[Annotated[int, Field(ge=-1, le=MAX_SEED)] | None, Shown("random", "-s")] = Field(
        None, description="Seed of the first picture; picture i has seed + i. -1 is random."
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_COUNT), FromList] | None = Field(
        None, description="One seed a picture (instead of seed and count)."
    )
    count: Annotated[int, Shown(flag="-n")] = Field(1, ge=1, le=MAX_COUNT, description="How many pictures.")
    mode: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: a picture does not depend on its batch. fast: several at a time through the network.",
    )
    batch_size: Annotated[Annotated[int, Field(ge=1, le=256)] | None, Shown("4")] = Field(
        None, description="Pictures at a time in fast mode."
    )
    clip_skip: int = Field(0, ge=0, le=30, description="Text layers left out, beyond what the model leaves out.")
    weighting: Annotated[Literal["a1111", "comfyui", "none"] | None, Shown(_BY_COMPAT)] = Field(
        None, description="How weights in the prompt act; none takes brackets literally."
    )
    long: Annotated[Literal["chunk", "truncate", "error"] | None, Shown(_BY_COMPAT)] = Field(
        None, description="A prompt longer than the text network's window: in chunks, cut, or refused."
    )
    seamless: Literal["none", "x", "y", "both"] = Field(
        "none", description="Edges that fit together, for textures: x left and right, y top and bottom."
    )
    tile: Annotated[Pixels | None, Shown("the whole picture")] = Field(
        None, description="Denoise in overlapping squares of so many pixels a side (MultiDiffusion)."
    )
    tile_overlap: float = Field(
        0.5,
        ge=0,
        le=0.9,
        description="With tile: the least share of a side that neighbouring squares have in common.",
    )
    tiled_decode: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Encode and decode in strips: the same within rounding in less memory; auto: above 1024 x 1024.",
    )
    compat: CompatName = Field(
        "langevin", description="By whose conventions: the same seed gives that program's picture."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("prompt", "negative", "label"):
            _check_text(name, str(getattr(self, name) or ""))
        if self.seeds is not None:
            if self.seed is not None:
                raise RequestError("seed and seeds were both given: give one of them")
            if self.count not in (1, len(self.seeds)):
                raise RequestError(f"count {self.count} contradicts {len(self.seeds)} seeds: leave count out")
        if self.sigmas is not None:
            if self.steps is not None or self.schedule is not None:
                raise RequestError("sigmas cannot go with steps or schedule: give the noise levels or how to make them")
            if any(a <= b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)):
                raise RequestError("sigmas must descend strictly, from the noisiest to the last (usually 0)")
            if self.compat != "langevin":
                raise RequestError(
                    f"sigmas cannot go with compat {self.compat!r}, which places the noise levels itself"
                )
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise RequestError(f"guidance_interval {low:g},{high:g} is empty: give LOW,HIGH with LOW at most HIGH")
        if self.batch_size is not None and self.batch_size > 1 and self.mode == "exact":
            raise RequestError(
                f"batch_size {self.batch_size} needs mode 'fast': exact mode runs pictures one at a time"
            )
        return self

    def image_seeds(self) -> tuple[int, ...]:
        """The seed of each picture: `seeds`, or seed + i modulo 2**64. A random seed is below 2**32, so that numpy
        and JavaScript hold it too, and new at each call."""
        if self.seeds is not None:
            return self.seeds
        first = secrets.randbelow(2**32) if self.seed in (None, -1) else int(self.seed or 0)
        return tuple((first + i) % 2**64 for i in range(self.count))

    def changed(self, **values: Any) -> Self:
        """The request with some options changed, checked again."""
        return type(self)(**{**{n: getattr(self, n) for n in self.model_fields_set}, **values})


def _check_text(name: str, text: str) -> None:
    for position, letter in enumerate(text):
        if letter == "\0" or "\ud800" <= letter <= "\udfff":
            what = "a NUL character" if letter == "\0" else f"a lone surrogate ({show(letter)})"
            raise RequestError(f"{name} holds {what} at position {position}: take it out")
