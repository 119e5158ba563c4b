"""Guidance in one network call, float32 twins, the autoencoder's scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from langevin.diffusion.guidance import guided
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.guided import conditioned, guided_model, repeated
from langevin.model.precision import float32_copy, is_finite


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def conditionings(seed: int = 0) -> tuple[Conditioning, Conditioning]:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = torch.randn(2, 1, 77, 32, generator=generator)
    return Conditioning(context=cond), Conditioning(context=uncond)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("space", [Prediction.X0, Prediction.EPSILON])
def test_one_call_on_both_halves_is_the_guidance_of_two_denoisers(
    make_bundle: Any, prediction: str, space: Prediction
) -> None:
    model = make_bundle(prediction=prediction).diffusion
    cond, uncond = conditionings()
    options: dict[str, Any] = {"scale": 4.0, "rescale": 0.5, "interval": (0.5, 5.0), "space": space}
    one = guided_model(model, cond, uncond, **options)
    two = guided(conditioned(model, cond), conditioned(model, uncond), **options)
    for sigma in (9.0, 5.0, 2.0, 0.5, 0.1):
        x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * sigma
        assert torch.allclose(one(x, sigma).x0, two(x, sigma).x0, atol=1e-4 * max(1.0, sigma)), sigma
    x = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(one(x, 2.0).x0, conditioned(model, cond)(x, 2.0).x0, atol=1e-2)
    assert torch.equal(one(x, 9.0).x0, conditioned(model, cond)(x, 9.0).x0)


def test_scale_one_and_an_empty_interval(tiny_bundle: ModelBundle) -> None:
    model = tiny_bundle.diffusion
    cond, uncond = conditionings()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(guided_model(model, cond, uncond, 1.0)(x, 2.0).x0, conditioned(model, cond)(x, 2.0).x0)
    with pytest.raises(RequestError, match="interval 3 to 2 is empty"):
        guided_model(model, cond, uncond, 2.0, interval=(3.0, 2.0))


def test_the_learned_variance_is_the_conditional_one(make_bundle: Any) -> None:
    bundle = make_bundle()
    network = bundle.diffusion.network

    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, z: torch.Tensor, t: torch.Tensor, **conditioning: Any) -> torch.Tensor:
            out = self.inner(z, t, **conditioning)
            return torch.cat([out, out.tanh()], 1)

    model = replace(bundle.diffusion, network=Doubled(), learned_variance=True)
    cond, uncond = conditionings()
    x = torch.randn(2, 4, 8, 8)
    found = guided_model(model, cond, uncond, 3.0)(x, 2.0).variance_fraction
    expected = conditioned(model, cond)(x, 2.0).variance_fraction
    assert found is not None and expected is not None
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_conditioning_of_one_image_serves_any_number() -> None:
    cond, _ = conditionings()
    assert cond.context is not None
    three = repeated(cond, 3)
    assert three.context is not None and three.context.shape == (3, 77, 32)
    assert all(torch.equal(row, cond.context[0]) for row in three.context)
    assert repeated(three, 3).context is three.context
    with pytest.raises(ValueError, match="3 images cannot serve 2"):
        repeated(three, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_copy_has_the_same_values_and_shares_nothing(make_bundle: Any, dtype: torch.dtype) -> None:
    network = make_bundle(dtype=dtype).text.network
    copied = float32_copy(network)
    originals = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    copies = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    assert originals.keys() == copies.keys()
    for name, value in originals.items():
        assert torch.equal(value.to(copies[name].dtype), copies[name])
        assert value.untyped_storage().data_ptr() != copies[name].untyped_storage().data_ptr()
        assert copies[name].dtype == (torch.float32 if value.is_floating_point() else value.dtype)
        assert value.dtype in (dtype, torch.int64)
    assert not copied.training


def test_what_is_finite() -> None:
    good = torch.zeros(2, 3)
    assert is_finite(good)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = good.clone()
        bad[1, 2] = value
        assert not is_finite(bad)


def test_the_autoencoder_owns_its_scale(tiny_bundle: ModelBundle) -> None:
    codec = tiny_bundle.autoencoder
    assert codec is not None and (codec.downsampling, codec.latent_channels) == (4, 4)
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    mean, logvar = codec.network.moments(image)
    noise = torch.randn_like(mean)
    assert torch.allclose(codec.encode(image), mean * 0.18215)
    assert torch.allclose(codec.encode(image, noise), (mean + (0.5 * logvar).exp() * noise) * 0.18215)
    assert torch.equal(codec.decode(mean * 0.5), codec.network.decode(mean * 0.5 / 0.18215))
    with pytest.raises(ValueError, match="multiples of 4"):
        codec.encode(image[..., :-1])


def test_the_autoencoder_casts_at_its_borders(make_bundle: Any) -> None:
    codec = make_bundle(dtype=torch.bfloat16).autoencoder
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = codec.encode(image)
    assert latents.dtype == torch.float32
    assert codec.decode(latents).dtype == torch.float32
