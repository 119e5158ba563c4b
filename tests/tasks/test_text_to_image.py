"""The plan: defaults, sizes, noise, prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import MakeBundle

from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.tasks import GenerateRequest, Plan, run, text_to_image
from langevin.tasks.area import _size_notices
from langevin.tasks.from_text import _decode, completed


def plan(bundle: ModelBundle, **options: Any) -> Plan:
    return text_to_image(bundle, GenerateRequest(**{"prompt": "a red apple", "seed": 7, **options}))


def test_what_is_left_open_comes_from_the_model_and_is_recorded(tiny_bundle: ModelBundle) -> None:
    request = plan(tiny_bundle, seed=None).request
    assert (request.width, request.height, request.steps, request.guidance) == (32, 32, 4, 5.0)
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "trailing")
    assert (request.weighting, request.long) == ("a1111", "chunk")
    assert request.seed is not None and 0 <= request.seed < 2**32
    assert completed(request, tiny_bundle) == request


def test_defaults_follow_the_preset(tiny_bundle: ModelBundle) -> None:
    request = plan(tiny_bundle, compat="diffusers", sampler="euler").request
    assert (request.schedule, request.weighting, request.long) == ("linspace", "none", "truncate")


def test_the_first_noise_is_that_of_one_image_by_its_seed(tiny_bundle: ModelBundle) -> None:
    p = plan(tiny_bundle, seed=41, count=3)
    for i in range(3):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(41 + i))
        assert torch.equal(p.x[i : i + 1], noise * float(p.sigmas[0]))


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (8, 45), (41, 9), (64, 20)])
def test_the_picture_has_the_very_size_asked_for(tiny_bundle: ModelBundle, size: tuple[int, int]) -> None:
    p = plan(tiny_bundle, width=size[0], height=size[1], steps=1, sampler="euler")
    assert p.x.shape[-2:] == (-(-size[1] // 4), -(-size[0] // 4))
    result = run(p).finish()
    assert result.images[0].size == size
    uneven = size[0] % 4 or size[1] % 4
    assert any("not a multiple of 4" in notice for notice in result.notices) == bool(uneven)


@settings(max_examples=300, deadline=None)
@given(st.integers(8, 4096), st.integers(8, 4096), st.sampled_from([1, 4, 8]))
def test_any_size_comes_out_of_whole_cells(width: int, height: int, factor: int) -> None:
    class Upsampler:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1).expand(1, 3, latents.shape[-2] * factor, latents.shape[-1] * factor)

    cells = torch.zeros(1).expand(1, 4, -(-height // factor), -(-width // factor))
    assert cells.shape[-1] * factor - width < factor
    assert _decode(Upsampler(), height, width)(cells).shape == (1, 3, height, width)  # type: ignore[arg-type]
    uneven = bool(width % factor or height % factor)
    assert len(_size_notices(width, height, factor)) == uneven


def test_a_cut_picture_is_the_middle_of_the_padded_one(tiny_bundle: ModelBundle) -> None:
    whole = plan(tiny_bundle, width=32, height=32)
    cut = plan(tiny_bundle, width=30, height=29)
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(cut.decode(latents), whole.decode(latents)[..., 1:30, 1:31])


def test_texts_are_encoded_once_whatever_the_steps_and_the_count(make_bundle: Any) -> None:
    bundle = make_bundle()
    p = plan(bundle, steps=5, count=2, negative="dog", guidance_interval=None)
    assert bundle.text.calls == 2  # prompt and negative prompt
    run(p).finish()
    assert bundle.text.calls == 2


def test_a_guided_step_is_one_network_call(make_bundle: Any) -> None:
    bundle = make_bundle()
    batches: list[int] = []
    bundle.diffusion.network.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    run(plan(bundle, steps=3, count=2, sampler="euler")).finish()
    assert batches == [2] * 6
    batches.clear()
    run(plan(bundle, steps=3, count=2, sampler="euler", mode="fast")).finish()
    assert batches == [4, 2, 4, 4]  # the second call measures the batch's influence on picture 0
    batches.clear()
    run(plan(bundle, steps=3, guidance=1, sampler="euler")).finish()
    assert batches == [1] * 3


def test_guidance_acts_inside_its_interval_alone(make_bundle: Any) -> None:
    bundle = make_bundle()
    batches: list[int] = []
    bundle.diffusion.network.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    p = plan(bundle, sigmas=[8.0, 4.0, 2.0, 1.0, 0.0], sampler="euler", guidance_interval=(1.5, 4.0))
    run(p).finish()
    assert batches == [1, 2, 2, 1]


def test_calls_are_those_that_the_run_makes(make_bundle: Any) -> None:
    bundle = make_bundle()
    calls: list[int] = []
    bundle.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    for sampler in ("euler", "heun", "plms", "dpmpp_sde", "restart"):
        calls.clear()
        p = plan(bundle, steps=4, sampler=sampler, guidance=1)
        run(p).finish()
        assert len(calls) == p.calls, sampler


def test_a_switch_acts_from_its_noise_level_on(tiny_bundle: ModelBundle) -> None:
    options: dict[str, Any] = {"steps": 4, "sampler": "euler", "guidance": 3.0}
    cat = [s.x for s in run(plan(tiny_bundle, prompt="a cat", **options))]
    dog = run(plan(tiny_bundle, prompt="a dog", **options))
    switched = plan(tiny_bundle, prompt="a [cat:dog:0.5]", **options)
    steps = [s.x for s in run(switched)]
    assert torch.equal(steps[0], cat[0]) and torch.equal(steps[1], cat[1])
    assert not torch.equal(steps[2], cat[2])
    starts = [entry["from_sigma"] for entry in switched.record["tokens"]["prompt"]]
    assert starts == [None, float(switched.sigmas[2])]
    # From the switch on it is the run of the other prompt, begun from here.
    rest = replace(dog.plan, x=steps[1], sigmas=switched.sigmas[2:])
    assert torch.equal([s.x for s in run(rest)][-1], steps[-1])


def test_the_negative_prompt_can_switch_too(tiny_bundle: ModelBundle) -> None:
    p = plan(tiny_bundle, negative="[cat:dog:0.25]", prompt="[a cat:a dog:0.5]", steps=4)
    assert [e["from_sigma"] for e in p.record["tokens"]["negative"]] == [None, float(p.sigmas[1])]
    assert run(p).finish().images


def test_a_negative_prompt_without_guidance_is_said(tiny_bundle: ModelBundle) -> None:
    assert "guidance is 1: the negative prompt has no effect" in plan(tiny_bundle, negative="x", guidance=1).notices


def test_a_long_prompt_is_said(tiny_bundle: ModelBundle) -> None:
    assert any("token" in notice for notice in plan(tiny_bundle, prompt="a cat and " * 60).notices)


def test_a_program_that_stops_above_zero_has_its_last_state_scaled(tiny_bundle: ModelBundle) -> None:
    p = plan(tiny_bundle, compat="diffusers", sampler="ddim", steps=5)
    last = float(p.sigmas[-1])
    assert last > 0
    assert p.final_scale == pytest.approx((1 + last**2) ** -0.5)
    result = run(p)
    steps = list(result)
    assert torch.equal(result.finish().latents, steps[-1].x * p.final_scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler", "eta": 0.5}, "option 'eta' of sampler euler is unknown"),
        ({"sampler_options": {"nothing": 1}}, "option 'nothing' of sampler dpmpp_2m is unknown"),
        ({"sampler": "ddim", "eta": 0.5, "sampler_options": {"eta": 0.1}}, "eta was given twice"),
        ({"sampler": "restart", "compat": "diffusers"}, "sampler 'restart' cannot be run as diffusers does"),
        (
            {"schedule": "karras", "compat": "diffusers", "sampler": "ddim"},
            "ddim on the grid 'karras' cannot be run as diffusers does",
        ),
        ({"clip_skip": 9}, "clip_skip 9 is out of bounds"),
        ({"prompt": "a cat and " * 60, "long": "error"}, "token"),
    ],
)
def test_what_the_model_or_program_cannot_do_is_refused(
    tiny_bundle: ModelBundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        plan(tiny_bundle, **options)
    assert message in str(caught.value)


def test_models_for_other_tasks_are_refused(make_bundle: Any) -> None:
    bundle = make_bundle()
    for changed in (
        replace(bundle, text=None),
        replace(bundle, autoencoder=None),
        replace(bundle, info=replace(bundle.info, task="inpainting")),
    ):
        with pytest.raises(RequestError, match=r"text-to-image model|no autoencoder: give a whole model"):
            plan(changed)


def test_levels_outside_the_schedule_are_told(make_bundle: MakeBundle) -> None:
    def notices(*sigmas: float) -> tuple[str, ...]:
        return text_to_image(make_bundle(), GenerateRequest(prompt="a cat", sigmas=sigmas)).notices

    assert not any("lie outside" in n for n in notices(14.6, 1.0, 0.03, 0.0))
    (told,) = (n for n in notices(30.0, 14.0, 0.001, 0.0) if "lie outside" in n)
    assert told.startswith("2 of the 4 noise levels lie outside the model's 0.02917 to 14.61")
