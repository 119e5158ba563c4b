"""The run: exactness in any batch, threads, cancelling, values that are not finite."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from langevin.errors import NotFiniteError
from langevin.model.bundle import ModelBundle
from langevin.tasks import GenerateRequest, Plan, Result, run, text_to_image


def plan(bundle: ModelBundle, **options: Any) -> Plan:
    basic = {"prompt": "a red apple", "seed": 7, "steps": 3, "sampler": "dpmpp_2m"}
    return text_to_image(bundle, GenerateRequest(**{**basic, **options}))


def same(a: Result, i: int, b: Result, j: int) -> bool:
    return torch.equal(a.latents[i], b.latents[j]) and a.images[i].tobytes() == b.images[j].tobytes()


# -- exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "unipc"])
def test_a_picture_is_the_same_alone_in_any_batch_and_in_any_order(tiny_bundle: ModelBundle, sampler: str) -> None:
    options: dict[str, Any] = {"sampler": sampler, "width": 28, "rescale": 0.7}
    batch = run(plan(tiny_bundle, count=3, **options)).finish()
    reordered = run(plan(tiny_bundle, seed=None, seeds=[9, 123, 7, 8], **options)).finish()
    assert same(batch, 0, reordered, 2) and same(batch, 1, reordered, 3) and same(batch, 2, reordered, 0)
    alone = run(plan(tiny_bundle, seed=8, **options)).finish()
    assert same(batch, 1, alone, 0)
    assert not same(batch, 0, batch, 1)
    assert batch.batch_difference is None


def test_threads_change_the_last_bits_at_most(tiny_bundle: ModelBundle) -> None:
    """A picture is the same in any batch for each number of threads; between two numbers it may differ by rounding."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = run(plan(tiny_bundle, seed=8, sampler="euler")).finish()
            batch = run(plan(tiny_bundle, count=2, sampler="euler")).finish()
            assert same(alone, 0, batch, 1)
            found.append(alone.latents)
    finally:
        torch.set_num_threads(before)
    assert float((found[0] - found[1]).abs().max()) <= 1e-5 * float(found[0].abs().max())


def test_a_plan_can_be_run_again(tiny_bundle: ModelBundle) -> None:
    p = plan(tiny_bundle, sampler="euler_ancestral")
    assert same(run(p).finish(), 0, run(p).finish(), 0)


def test_fast_mode_states_its_difference(tiny_bundle: ModelBundle) -> None:
    fast = run(plan(tiny_bundle, count=5, mode="fast", batch_size=3)).finish()
    exact = run(plan(tiny_bundle, count=5)).finish()
    assert fast.batch_difference is not None
    assert any("fast mode: the first network call differs by" in notice for notice in fast.notices)
    assert len(fast.images) == 5
    largest = float((fast.latents - exact.latents).abs().max())
    assert largest <= 1e-4 * float(exact.latents.abs().max())


def test_the_measured_difference_is_the_batch_s(make_bundle: Any) -> None:
    """A network whose answer depends on its batch is found out, by the amount that it depends on it."""
    bundle = make_bundle()
    bundle.diffusion.network.register_forward_hook(lambda _, inputs, out: out + 0.25 * (len(inputs[0]) > 1))
    result = run(plan(bundle, count=2, mode="fast", guidance=1, sampler="euler")).finish()
    sigma = float(result.plan.sigmas[0])
    assert result.batch_difference == pytest.approx(0.25 * sigma, rel=1e-4)


# -- stepping -----------------------------------------------------------------------------------------------------


def test_steps_progress_and_previews(tiny_bundle: ModelBundle) -> None:
    running = run(plan(tiny_bundle, count=2, steps=4))
    seen = []
    for step in running:
        assert torch.is_grad_enabled()  # the caller's mode is left alone between the steps
        assert running.preview()[0].size == (32, 32)
        seen.append((running.images[0], step.index, running.progress, len(running.pictures)))
    assert [s[:2] for s in seen] == [(i, k) for i in range(2) for k in range(4)]
    assert [s[2] for s in seen] == pytest.approx([(i + 1) / 8 for i in range(8)])
    assert [s[3] for s in seen] == [0] * 4 + [1] * 4
    assert running.progress == 1.0
    assert len(running.finish().images) == 2


def test_no_gradients_are_kept(make_bundle: Any) -> None:
    bundle = make_bundle()
    for network in bundle.networks().values():
        network.requires_grad_(True)
    running = run(plan(bundle, steps=2))
    assert not any(step.x.requires_grad or step.x0.requires_grad for step in running)


def test_stopping_the_iteration_stops_the_computation(make_bundle: Any) -> None:
    bundle = make_bundle()
    calls: list[int] = []
    bundle.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    running = run(plan(bundle, steps=4, sampler="euler", count=2))
    for step in running:
        if step.index == 1:
            break
    assert len(calls) == 2
    assert same(run(plan(bundle)).finish(), 0, run(plan(bundle)).finish(), 0)  # the model is none the worse
    assert len(calls) == 8


def test_a_run_that_failed_does_not_give_a_result(tiny_bundle: ModelBundle) -> None:
    def broken(x: torch.Tensor, sigma: float) -> Any:
        raise KeyboardInterrupt

    running = run(replace(plan(tiny_bundle), denoiser=broken))
    with pytest.raises(KeyboardInterrupt):
        next(running)
    with pytest.raises(RuntimeError, match="stopped"):
        running.finish()


def test_two_threads_share_a_model(tiny_bundle: ModelBundle) -> None:
    requests = [
        {"prompt": "a cat", "seed": 1, "steps": 6},
        {"prompt": "a blue house", "seed": 2, "steps": 6, "width": 40},
    ]
    expected = [run(plan(tiny_bundle, **r)).finish() for r in requests]
    found: list[Result | None] = [None] * 4

    def work(i: int) -> None:
        found[i] = run(plan(tiny_bundle, **requests[i % 2])).finish()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(found):
        assert result is not None and same(result, 0, expected[i % 2], 0)


def test_interleaved_runs_do_not_touch_each_other(tiny_bundle: ModelBundle) -> None:
    plans = [plan(tiny_bundle, seed=s, sampler="euler_ancestral") for s in (1, 2)]
    expected = [run(p).finish() for p in plans]
    runs = [run(p) for p in plans]
    for _ in zip(*runs, strict=True):
        pass
    assert all(same(r.finish(), 0, e, 0) for r, e in zip(runs, expected, strict=True))


# -- values that are not finite -----------------------------------------------------------------------------------


def breaks(module: nn.Module, at: int, value: float, dtype: torch.dtype) -> None:
    """Puts `value` into one element of the output of call number `at`, as long as the module is in `dtype`."""
    calls = [0]

    def hook(network: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if next(network.parameters()).dtype != dtype:
            return None
        calls[0] += 1
        if calls[0] != at:
            return None
        output = output.clone()
        output.view(-1)[-1] = value
        return output

    module.register_forward_hook(hook)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1, 3])
def test_a_network_that_overflows_goes_on_in_float32(
    make_bundle: Any, value: float, dtype: torch.dtype, step: int
) -> None:
    bundle = make_bundle(dtype=dtype)
    breaks(bundle.diffusion.network, step, value, dtype)
    result = run(plan(bundle, sampler="euler")).finish()
    name = str(dtype).removeprefix("torch.")
    assert (
        f"picture 0, step {step}: the network gave NaN or infinity in {name}; float32 from there on" in result.notices
    )
    assert torch.isfinite(result.latents).all()
    assert result.images[0].getextrema() != ((0, 0), (0, 0), (0, 0))
    assert next(bundle.diffusion.network.parameters()).dtype == dtype  # the shared network stays as it was


def test_a_real_overflow_is_found(make_bundle: Any) -> None:
    """Weights whose activations pass 65504 on the way, as those of published float16 models do, but not in float32."""
    bundle = make_bundle(dtype=torch.float16)
    with torch.no_grad():
        bundle.diffusion.network.input_blocks[0][0].weight.mul_(3e4)
    result = run(plan(bundle, sampler="euler")).finish()
    assert any("step 1: the network gave NaN or infinity in float16" in notice for notice in result.notices)
    assert torch.isfinite(result.latents).all()


def test_float32_takes_over_with_the_right_numbers(make_bundle: Any) -> None:
    """From the failed call on, the run is that of the same weights in float32."""
    bundle, wide = make_bundle(dtype=torch.bfloat16), make_bundle(dtype=torch.bfloat16)
    for name in ("diffusion", "autoencoder", "text"):
        getattr(wide, name).network.float()
    breaks(bundle.diffusion.network, 1, math.nan, torch.bfloat16)
    breaks(bundle.autoencoder.network.decoder, 1, math.nan, torch.bfloat16)
    p = plan(bundle, sampler="euler")
    result = run(p).finish()
    # The prompts were encoded in bfloat16 and stay so; everything after is float32.
    expected = run(replace(p, denoiser=p.denoiser_float32(), denoiser_float32=None)).finish()  # type: ignore[misc]
    assert torch.equal(result.latents, expected.latents)
    float32 = run(plan(wide, sampler="euler")).finish()
    assert float((result.latents - float32.latents).abs().max()) < 0.05 * float(float32.latents.abs().max())


def test_a_picture_does_not_depend_on_another_that_overflowed(make_bundle: Any) -> None:
    good = run(plan(make_bundle(dtype=torch.bfloat16), count=2, sampler="euler")).finish()
    bundle = make_bundle(dtype=torch.bfloat16)
    breaks(bundle.diffusion.network, 2, math.nan, torch.bfloat16)
    half = run(plan(bundle, count=2, sampler="euler")).finish()
    assert not same(half, 0, good, 0) and same(half, 1, good, 1)


def test_a_decoder_that_overflows_is_run_in_float32(make_bundle: Any) -> None:
    bundle = make_bundle(dtype=torch.float16)
    breaks(bundle.autoencoder.network.decoder, 1, math.nan, torch.float16)
    result = run(plan(bundle)).finish()
    assert "picture 0: decoding gave NaN or infinity in float16; decoded in float32" in result.notices
    assert min(low for low, _ in result.images[0].getextrema()) < max(high for _, high in result.images[0].getextrema())


def test_a_text_encoder_that_overflows_is_run_in_float32(make_bundle: Any) -> None:
    bundle = make_bundle(dtype=torch.float16)
    network = bundle.text.network

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (
            output._replace(states=output.states * math.nan)
            if next(module.parameters()).dtype == torch.float16
            else None
        )

    network.register_forward_hook(hook)
    p = plan(bundle)
    assert "the text encoder gave NaN or infinity in float16; it ran in float32" in p.notices
    assert torch.isfinite(run(p).finish().latents).all()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_in_float32_it_is_an_error_that_names_the_step(make_bundle: Any, step: int) -> None:
    bundle = make_bundle()
    breaks(bundle.diffusion.network, step, math.nan, torch.float32)
    with pytest.raises(NotFiniteError, match=rf"picture 0, step {step}: the network gave NaN or infinity in float32"):
        run(plan(bundle, sampler="euler")).finish()


def test_in_float32_a_broken_decoder_is_an_error(make_bundle: Any) -> None:
    bundle = make_bundle()
    breaks(bundle.autoencoder.network.decoder, 1, math.inf, torch.float32)
    with pytest.raises(NotFiniteError, match="picture 0: decoding gave NaN or infinity in float32"):
        run(plan(bundle)).finish()


def test_weights_broken_in_both_precisions_are_an_error(make_bundle: Any) -> None:
    bundle = make_bundle(dtype=torch.bfloat16)
    with torch.no_grad():
        next(bundle.diffusion.network.parameters()).view(-1)[0] = math.nan
    with pytest.raises(NotFiniteError, match=r"step 1: .* in float32 too"):
        run(plan(bundle)).finish()


def test_a_sampler_that_diverges_is_an_error(tiny_bundle: ModelBundle) -> None:
    def diverging(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, noise: Any) -> Any:
        for step in p.sampler(denoiser, x, sigmas, noise):
            yield step._replace(x=step.x * (math.inf if step.index == 1 else 1))

    p = plan(tiny_bundle)
    with pytest.raises(NotFiniteError, match="picture 0, step 2: the sampler gave NaN"):
        run(replace(p, sampler=diverging)).finish()
