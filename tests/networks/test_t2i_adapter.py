"""T2I-Adapters against diffusers', and where the U-Net adds what they give."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests.networks.network_pairs import difference, randomise

from langevin.checkpoints.adapters import diffusers_adapter
from langevin.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig
from langevin.networks.unet import UNet, UNetConfig

KINDS: list[tuple[T2IAdapterConfig, dict[str, Any]]] = [
    (T2IAdapterConfig(channels=(32, 64, 64)), {"channels": [32, 64, 64]}),
    (T2IAdapterConfig(channels=(32, 64), hint_channels=1, num_res_blocks=3),
     {"channels": [32, 64], "in_channels": 1, "num_res_blocks": 3}),
    (T2IAdapterConfig(channels=(32, 64, 64), num_res_blocks=4, light=True),
     {"channels": [32, 64], "num_res_blocks": 4, "adapter_type": "light_adapter"}),
]  # fmt: skip


@pytest.mark.parametrize("kind", range(3), ids=["full", "grey", "light"])
def test_features_agree(kind: int) -> None:
    config, options = KINDS[kind]
    theirs = diffusers.T2IAdapter(**options).eval()
    randomise(theirs)
    ours = T2IAdapter(config).eval()
    places, weights = diffusers_adapter(ours.state_dict(), config), theirs.state_dict()
    assert {place.name for place in places.values()} == set(weights)
    ours.load_state_dict({name: weights[place.name] for name, place in places.items()})
    for height, width in [(8, 8), (5, 7)]:
        hint = torch.rand(2, config.hint_channels, 8 * height, 8 * width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            result, expected = ours(hint), theirs(hint)
        assert len(result) == len(config.channels)
        for mine, other in zip(result, expected, strict=True):
            assert difference(mine, other) < 1e-5


def test_the_published_architecture() -> None:
    """Names, shapes and number of parameters of the files for Stable Diffusion, as diffusers' conversion knows them."""
    with torch.device("meta"):
        full, light = T2IAdapter(T2IAdapterConfig()), T2IAdapter(T2IAdapterConfig(num_res_blocks=4, light=True))
        theirs = diffusers.T2IAdapter()
        theirs_light = diffusers.T2IAdapter(channels=[320, 640, 1280], num_res_blocks=4, adapter_type="light_adapter")
    for ours, other in ((full, theirs), (light, theirs_light)):
        places, shapes = diffusers_adapter(ours.state_dict(), ours.config), other.state_dict()
        assert {places[n].name: t.shape for n, t in ours.state_dict().items()} == {
            n: t.shape for n, t in shapes.items()
        }
    shapes = {name: tuple(t.shape) for name, t in full.state_dict().items()}
    assert shapes["body.2.in_conv.weight"] == (640, 320, 1, 1) and shapes["body.6.block1.weight"] == (1280, 1280, 3, 3)
    assert shapes["conv_in.weight"] == (320, 192, 3, 3) and "body.6.in_conv.weight" not in shapes
    assert {name.split(".")[1] for name in light.state_dict()} == {"0", "1", "2", "3"}


def test_impossible_architectures_are_refused() -> None:
    for values in ({"channels": ()}, {"channels": (30,)}, {"num_res_blocks": 0}, {"hint_channels": 0}):
        with pytest.raises(ValueError, match="must be"):
            T2IAdapterConfig(**values)


def test_where_the_unet_adds_features() -> None:
    """At the end of each level: so they are in the skip connection and in what goes further down."""
    config = UNetConfig(
        model_channels=32, channel_mult=(1, 2), attention_levels=(False, True), context_channels=None, num_heads=2
    )
    unet = UNet(config).eval()
    randomise(unet)
    seen: dict[str, torch.Tensor] = {}
    for name in ("input_blocks.2", "input_blocks.3"):
        module = unet.get_submodule(name)
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output, f"{name}<": inputs[0]})
        )
    features = [torch.randn(1, 32, 6, 5), torch.randn(1, 64, 3, 3)]
    with torch.no_grad():
        unet(torch.randn(1, 4, 6, 5), torch.tensor([3.0]), features=features)
    assert torch.equal(seen["input_blocks.3<"], seen["input_blocks.2"] + features[0])
    with pytest.raises(ValueError, match="features of 1 levels: this network has 2"):
        unet(torch.randn(1, 4, 6, 5), torch.tensor([3.0]), features=features[:1])
