"""The options of inversion and of editing by it. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from langevin.errors import RequestError
from langevin.tasks.options import FromList, Options, Shown
from langevin.tasks.request import GenerateRequest

InversionName = Literal["ddim", "fixed_point", "edict", "bdia", "null_text"]
"""The keys of `langevin.diffusion.inversion.INVERSIONS`, and null-text optimisation, which is DDIM inversion with
guidance's other half fitted to it (a test compares them)."""

SAMPLERS = ("euler", "ddim")
"""What is inverted: one method under two names."""

_ITERATIONS = {"fixed_point": 30, "null_text": 10}
_STRENGTH = Field(gt=0, le=1)
_TOLD = ("prompt", "negative", "guidance")
"""What may be another for regenerating than it was for inverting."""


class InvertRequest(GenerateRequest):
    """The noise that one picture would have come from."""

    inversion: InversionName = Field(
        "fixed_point",
        description="How. ddim: one call a step, inexact. fixed_point: each step solved. edict, bdia: two states, "
        "exact by form. null_text: ddim, then the empty text fitted so that guidance leads back.",
    )
    iterations: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None, Shown("30 with fixed_point, 10 with null_text")
    ] = Field(
        None, description="fixed_point: calls a step at most. null_text: steps of the optimiser at each noise level."
    )
    strength: Annotated[Annotated[float, _STRENGTH] | None, Shown("1")] = Field(
        None, description="Share of the run that is turned round: how far up the noise goes."
    )

    @model_validator(mode="after")
    def _invertible(self) -> Self:
        if self.sampler not in (None, *SAMPLERS):
            raise RequestError(
                f"sampler {self.sampler!r} cannot be turned round: euler and ddim can, and inversion names further ways"
            )
        if self.eta:
            raise RequestError(f"eta {self.eta:g} draws fresh noise, which no inversion knows: give 0")
        if self.sampler_options:
            raise RequestError(f"option {next(iter(self.sampler_options))!r} is of a sampler: inversion has none")
        if self.count != 1 or len(self.seeds or (0,)) != 1:
            raise RequestError(f"{len(self.image_seeds())} pictures were asked for: one is inverted at a time")
        if self.mode != "exact" or self.batch_size is not None:
            raise RequestError("mode 'fast' and batch_size are of several pictures: one is inverted at a time")
        if self.compat not in ("langevin", "diffusers"):
            raise RequestError(f"compat {self.compat!r} has no inversion: use langevin or diffusers")
        if self.iterations is not None and self.inversion not in _ITERATIONS:
            raise RequestError(f"iterations are of fixed_point and null_text: inversion {self.inversion} has none")
        if self.inversion == "null_text" and (self.rescale or self.guidance_interval is not None):
            raise RequestError("null_text is fitted to plain guidance: leave rescale and guidance_interval out")
        if self.inversion == "null_text" or self.compat == "diffusers":
            self._refuse_area("null_text" if self.inversion == "null_text" else "compat diffusers")
        return self

    def _refuse_area(self, what: str) -> None:
        for name in ("tile", "seamless"):
            if getattr(self, name) not in (None, "none"):
                raise RequestError(f"{name} and {what} do not go together: leave one of them out")

    @property
    def most_iterations(self) -> int:
        """`iterations` with its default."""
        return self.iterations or _ITERATIONS.get(self.inversion, 1)

    @property
    def turned(self) -> float:
        """`strength` with its default."""
        return 1.0 if self.strength is None else self.strength


class EditRequest(InvertRequest):
    """One picture, changed from what one text says to what another says."""

    prompt: Annotated[Annotated[str, Field(max_length=20_000)] | None, Shown(option="to")] = Field(
        None, description="What the picture shall show."
    )
    source: Annotated[Annotated[str, Field(max_length=20_000)] | None, Shown(option="from")] = Field(
        None, description="What the picture shows."
    )
    method: Literal["prompt_to_prompt", "diffedit", "plain"] = Field(
        "prompt_to_prompt",
        description="prompt_to_prompt: the attention of the new text follows that of the old. diffedit: only where the "
        "two disagree. plain: the new text alone.",
    )
    negative: Annotated[str, Shown("what the picture shows")] = Field(
        "",
        description="What guidance leads away from. With what the picture shows, nothing is changed but by the new "
        "text; '' is the empty text.",
        max_length=20_000,
    )
    strength: Annotated[Annotated[float, _STRENGTH] | None, Shown("0.8 with diffedit, else 1")] = Field(
        None, description="Share of the run that is turned round: less of it keeps more of the picture."
    )
    cross_share: float = Field(
        0.8, ge=0, le=1, description="prompt_to_prompt: share of the run in which attention to the text follows."
    )
    self_share: float = Field(
        0.4, ge=0, le=1, description="prompt_to_prompt: share of the run in which attention between pixels follows."
    )
    emphasis: Annotated[dict[str, float], Shown("none")] = Field(
        {}, description="prompt_to_prompt: words of the new text and what their attention is multiplied with."
    )
    local: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Shown("everywhere"), FromList] = Field(
        (), description="prompt_to_prompt: a word of either text; the picture is changed only where attention is on it."
    )
    local_threshold: float = Field(
        0.3,
        ge=0,
        le=1,
        description="prompt_to_prompt: share of the highest attention from which on a place belongs to the words of "
        "local.",
    )
    mask_level: float = Field(
        0.5, gt=0, le=1, description="diffedit: how far up the run the two texts are compared, as a strength."
    )
    mask_samples: int = Field(10, ge=1, le=100, description="diffedit: draws of noise that the comparison averages.")

    @model_validator(mode="after")
    def _editable(self) -> Self:
        if self.source is None:
            raise RequestError("source is missing: say with --from what the picture shows; '' says nothing")
        if self.prompt is None:
            raise RequestError("prompt is missing: say with --to what the picture shall show")
        of = {
            "prompt_to_prompt": ("cross_share", "self_share", "emphasis", "local", "local_threshold"),
            "diffedit": ("mask_level", "mask_samples"),
        }
        for method, names in of.items():
            for name in names:
                if self.method != method and getattr(self, name) != type(self).model_fields[name].default:
                    raise RequestError(f"{name} is of {method}: method {self.method} has none, leave it out")
        if self.method != "plain":
            self._refuse_area(f"method {self.method}")
        if self.method != "plain" and self.inversion in ("edict", "bdia"):
            raise RequestError(
                f"method {self.method} follows one state, {self.inversion} has two: use fixed_point, or method plain"
            )
        if self.local_threshold != type(self).model_fields["local_threshold"].default and not self.local:
            raise RequestError("local_threshold is of local: say with it which words the change is about")
        if self.method == "diffedit" and self.inversion == "null_text":
            raise RequestError("method diffedit does not use a fitted text: use inversion fixed_point or ddim")
        return self

    @property
    def turned(self) -> float:
        if self.strength is not None:
            return self.strength
        return 0.8 if self.method == "diffedit" else 1.0

    @property
    def against(self) -> str:
        """`negative` with its default; a fitted text begins as the empty one."""
        if "negative" in self.model_fields_set:
            return self.negative
        return "" if self.inversion == "null_text" else self.source or ""

    def of_source(self) -> InvertRequest:
        """The inversion that it begins with. Where guidance leads away from the very text that it leads to, there is
        nothing to guide."""
        own = {name: getattr(self, name) for name in InvertRequest.model_fields if name in self.model_fields_set}
        own |= {"prompt": self.source, "strength": self.turned, "negative": self.against}
        if self.against == self.source and self.inversion != "null_text":
            own |= {"guidance": 1.0, "negative": ""}
        return InvertRequest(**own)


class RegenerateRequest(InvertRequest):
    """A picture from inverted noise: what is asked for, and what the noise was found with."""

    found_prompt: str | None = Field(None, description="Prompt of the inversion.")
    found_negative: str = Field("", description="Negative prompt of the inversion.")
    found_guidance: float | None = Field(None, description="Guidance of the inversion.")

    @classmethod
    def of(cls, found: InvertRequest, **changes: Any) -> RegenerateRequest:
        """Of noise that `found`, completed, asked for, with some options changed."""
        own = {name: getattr(found, name) for name in found.model_fields_set}
        told = {f"found_{name}": getattr(found, name) for name in _TOLD}
        return cls(**{**own, **told, **changes})

    def of_picture(self) -> InvertRequest:
        """The request that the noise was found by."""
        own = {name: getattr(self, name) for name in InvertRequest.model_fields if name in self.model_fields_set}
        return InvertRequest(**{**own, **{name: getattr(self, f"found_{name}") for name in _TOLD}})


class RegenerateOptions(Options):
    """What is made otherwise than a file of inverted noise says."""

    prompt: Annotated[Annotated[str, Field(max_length=20_000)] | None, Shown("the file's")] = Field(
        None, description="What to draw."
    )
    negative: Annotated[Annotated[str, Field(max_length=20_000)] | None, Shown("the file's")] = Field(
        None, description="What to keep away from."
    )
    guidance: Annotated[Annotated[float, Field(ge=0, le=100)] | None, Shown("the file's", "-g")] = Field(
        None, description="Weight of classifier-free guidance; 1 is none."
    )

    def given(self) -> dict[str, Any]:
        """Those that were."""
        return {name: value for name, value in self if value is not None}
