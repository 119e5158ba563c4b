from __future__ import annotations

import pytest

from langevin.errors import RequestError
from langevin.training.config import override
from langevin.training.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_and_survives_an_override(name: str) -> None:
    config = RECIPES[name]()
    changed = override(config, ["diffusion.loop.steps=7", "seed=3", "diffusion.prediction=v"])
    assert (changed.diffusion.loop.steps, changed.seed, changed.diffusion.prediction.value) == (7, 3, "v")
    assert override(config, []) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=3", "no field 'steps'.*seed"),
        ("diffusion.loop.stepz=3", "no field 'diffusion.loop.stepz'.*steps"),
        ("diffusion.loop.steps", "write it as name=value"),
        ("diffusion.loop.steps=-1", r"diffusion\.loop\.steps = -1"),
        ("diffusion.loop.steps=many", "diffusion.loop.steps = 'many'"),
        ("diffusion.network.context_channels=64", "is not clip.text.width"),
        ("data.size=66", "not a multiple of the autoencoder's factor"),
        ("seed.x=1", "no field 'seed.x'"),
        ("seed=true", "seed cannot be true or false; it is 0 now"),
        ("diffusion.loop.learning_rate=NaN", "learning_rate = nan: Input should be a finite number"),
        ("diffusion.loop.learning_rate=Infinity", "learning_rate = inf: Input should be a finite number"),
        ("diffusion.network.head_channels=0", "diffusion.network: head_channels 0: must be at least 1"),
        ("clip.text.layers=0", "clip.text: layers 0: must be at least 1"),
        ("diffusion.loop={}", "diffusion.loop.steps: Field required"),
        ("autoencoder.network.latent_channels=8", "diffusion.network.in_channels 4 is not latent_channels 8"),
        ("clip.image.image_size=32", "clip.image.image_size 32 is not data.size 64"),
        ("clip.text.projection=5", "clip.image.projection 192 is not clip.text.projection 5"),
        ("diffusion.network.num_classes=3", "num_classes 3 is not"),
        ("clip.text.positions=20", "positions 20 is less than the 77 tokens"),
    ],
)
def test_bad_overrides_are_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        override(RECIPES["emoji"](), [assignment])
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
