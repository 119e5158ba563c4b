from __future__ import annotations

import pytest

from langevin.errors import RequestError
from langevin.training.config import override
from langevin.training.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_and_survives_an_override(name: str) -> None:
    config = RECIPES[name]()
    changed = override(config, ["diffusion.loop.steps=7", "seed=3", "diffusion.prediction=epsilon"])
    assert (changed.diffusion.loop.steps, changed.seed, changed.diffusion.prediction.value) == (7, 3, "epsilon")
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
    ],
)
def test_bad_overrides_are_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        override(RECIPES["emoji"](), [assignment])
