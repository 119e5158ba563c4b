"""The request: bounds, messages, seeds, and that its lists of names are those of the registries."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.diffusion.compat import COMPAT
from langevin.diffusion.grids import GRIDS
from langevin.diffusion.samplers import SAMPLERS
from langevin.errors import RequestError
from langevin.tasks.request import CompatName, GenerateRequest, GridName, ModelOptions, SamplerName


def test_names_are_those_of_the_registries() -> None:
    grids = {grid for c in COMPAT.values() for rule in c.samplers.values() for grid in rule.grids}
    assert set(get_args(SamplerName)) == set(SAMPLERS)
    assert set(get_args(GridName)) == set(GRIDS) | grids
    assert set(get_args(CompatName)) == set(COMPAT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0 is out of bounds: give 1 to 1000"),
        ({"steps": 1001}, "steps 1001 is out of bounds: give 1 to 1000"),
        ({"steps": True}, "steps True is not a whole number: give 1 to 1000"),
        ({"steps": "20"}, "steps '20' is not a whole number: give 1 to 1000"),
        ({"steps": 20.0}, "steps 20.0 is not a whole number: give 1 to 1000"),
        ({"guidance": math.nan}, "guidance nan is out of bounds: give 0 to 100"),
        ({"guidance": math.inf}, "guidance inf is out of bounds: give 0 to 100"),
        ({"guidance": 100.5}, "guidance 100.5 is out of bounds: give 0 to 100"),
        ({"rescale": -0.1}, "rescale -0.1 is out of bounds: give 0 to 1"),
        ({"width": 7}, "width 7 is out of bounds: give 8 to 4096"),
        ({"height": 4097}, "height 4097 is out of bounds: give 8 to 4096"),
        ({"seed": -2}, "seed -2 is out of bounds: give -1 to 18446744073709551615"),
        ({"seed": 2**64}, "seed 18446744073709551616 is out of bounds: give -1 to 18446744073709551615"),
        ({"seeds": [3, -1]}, "seeds -1 is out of bounds: give 0 to 18446744073709551615"),
        ({"count": 0}, "count 0 is out of bounds: give 1 to 10000"),
        ({"sampler": "eulr"}, "did you mean 'euler'?"),
        ({"stepz": 3}, "unknown option 'stepz'; did you mean 'steps'?"),
        ({"seed": 1, "seeds": [2]}, "seed and seeds were both given"),
        ({"seeds": [1, 2], "count": 3}, "count 3 contradicts 2 seeds"),
        ({"sigmas": [1.0, 2.0]}, "sigmas must descend strictly"),
        ({"sigmas": [2.0, 0.0], "steps": 3}, "sigmas cannot go with steps or schedule"),
        ({"sigmas": [2.0, 0.0], "compat": "a1111"}, "sigmas cannot go with compat 'a1111'"),
        ({"guidance_interval": (3.0, 1.0)}, "guidance_interval 3,1 is empty"),
        ({"guidance_interval": (1.0,)}, "guidance_interval (1.0,) does not fit"),
        ({"batch_size": 4}, "batch_size 4 needs mode 'fast'"),
        ({"prompt": "a\0b"}, "prompt holds a NUL character at position 1"),
        ({"negative": "x" * 20_001}, "negative is 20001 characters long: at most 20000"),
        ({"prompt": 7}, "prompt 7 is not text"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerateRequest(**{"prompt": "a", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lone_surrogates_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="prompt"):
        GenerateRequest(prompt="a\ud800")


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        GenerateRequest(prompt="a", steps=0, width=1, sampler="none")
    assert all(word in str(caught.value) for word in ("steps 0", "width 1", "sampler 'none'"))


def test_a_request_is_frozen_and_survives_json() -> None:
    request = GenerateRequest(prompt="a", seeds=[1, 2**64 - 1], guidance_interval=(0.5, 3), sampler_options={"eta": 1})
    with pytest.raises(ValueError, match="frozen"):
        request.steps = 3  # type: ignore[misc]
    again = GenerateRequest(**json.loads(request.model_dump_json()))
    assert again == request
    assert again.seeds == (1, 2**64 - 1)


def test_random_seeds_are_small_new_and_counted_from() -> None:
    for seed in (None, -1):
        first = GenerateRequest(prompt="a", seed=seed, count=3).image_seeds()
        assert first[0] < 2**32
        assert [s - first[0] for s in first] == [0, 1, 2]
    assert len({GenerateRequest(prompt="a").image_seeds() for _ in range(5)}) == 5


def test_seeds_count_modulo_two_to_the_64() -> None:
    assert GenerateRequest(prompt="a", seed=2**64 - 1, count=2).image_seeds() == (2**64 - 1, 0)


def test_precision_has_one_name() -> None:
    names = {ModelOptions(dtype=d).precision for d in ("bf16", "bfloat16")}
    assert names == {"bfloat16"}


_ANYTHING = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
    | st.lists(st.integers(-3, 3) | st.floats(), max_size=3)
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*GenerateRequest.model_fields, "other"]), _ANYTHING, max_size=4))
def test_any_value_is_taken_or_refused_in_one_line(options: dict[str, Any]) -> None:
    try:
        request = GenerateRequest(**{"prompt": "a", **options})
    except RequestError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 3000
    else:
        assert all(0 <= seed < 2**64 for seed in request.image_seeds())
        assert GenerateRequest(**json.loads(request.model_dump_json())) == request


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_seeds_are_echoed_exactly_or_refused(seed: int) -> None:
    if -1 <= seed < 2**64:
        found = GenerateRequest(prompt="a", seed=seed).image_seeds()[0]
        assert found == seed or (seed == -1 and found < 2**32)
    else:
        with pytest.raises(RequestError, match="seed"):
            GenerateRequest(prompt="a", seed=seed)
