"""Pictures for measuring: what they are told, and how a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import MakeBundle
from tests.evaluation.gaussian_model import DEVIATION, gaussian_bundle

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.guidance import clipped
from langevin.errors import RequestError
from langevin.evaluation import generation
from langevin.evaluation.generation import generate_pictures
from langevin.images.pixels import open_picture
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import text_to_image
from langevin.tasks.request import GenerateRequest
from langevin.tasks.runner import run

RECORDS = [{"caption": c} for c in ("a red apple", "a blue house", "a cat (very)", "a dog", "a cat")]
REQUEST = GenerateRequest(prompt="", steps=3)


def make(bundle: ModelBundle, folder: Path, records: list[dict[str, object]] = RECORDS, **more: object) -> torch.Tensor:
    options = {"seed": 3, "batch": 2, **more}
    request = REQUEST.changed(steps=options.pop("steps", 3))
    return generate_pictures(bundle, records, folder, request, **options)[0]  # type: ignore[arg-type]


def test_pictures_are_those_that_generate_makes_of_the_captions(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    made = make(tiny_bundle, tmp_path / "a", batch=1)
    assert made.shape == (5, 3, 32, 32) and made.dtype == torch.uint8
    for index in (0, 2):
        request = REQUEST.changed(prompt=str(RECORDS[index]["caption"]), seed=3 + index, weighting="none")
        alone = run(text_to_image(tiny_bundle, request)).finish().images[0]
        assert open_picture(tmp_path / "a" / f"{index:08d}.png").tobytes() == alone.tobytes()
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert lines[1] == {"file_name": "00000001.png", "caption": "a blue house"}


def test_a_stopped_run_makes_only_the_blocks_that_are_missing(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    calls: list[int] = []
    bundle.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    whole = make(bundle, tmp_path / "whole")
    assert len(calls) == 9  # three blocks, three steps
    calls.clear()

    class StoppedError(Exception):
        pass

    def stop(done: int) -> None:
        if done == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        make(bundle, tmp_path / "cut", finished=stop)
    (tmp_path / "cut" / "00000001.png").unlink()
    calls.clear()
    assert torch.equal(make(bundle, tmp_path / "cut"), whole)
    assert len(calls) == 6  # the first block, which lost a picture, and the last
    names = {p.name for p in (tmp_path / "cut").iterdir()}
    assert names == {p.name for p in (tmp_path / "whole").iterdir()}


def test_other_options_do_not_go_on_with_these_pictures(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    bundle = make_bundle()
    make(bundle, folder)
    with pytest.raises(RequestError, match="made with another seed"):
        make(bundle, folder, seed=4)
    with pytest.raises(RequestError, match="made with another request"):
        generate_pictures(bundle, RECORDS, folder, REQUEST.changed(steps=4), seed=3, batch=2)
    with pytest.raises(RequestError, match="made with another records"):
        make(bundle, folder, records=[{"caption": "a dog"}, *RECORDS[1:]])
    with pytest.raises(RequestError, match="made with another samples"):
        make(bundle, folder, records=RECORDS[:4])
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "mine.png").write_bytes(b"")
    with pytest.raises(RequestError, match="holds pictures of unknown origin"):
        make(bundle, stray)


def test_a_model_of_pixels_is_told_classes_or_nothing(tmp_path: Path) -> None:
    labels = [{"caption": "x", "label": i % 2} for i in range(8)]
    made = make(gaussian_bundle(means=(-0.5, 0.5)), tmp_path / "classes", records=labels, batch=4)
    assert made.shape == (8, 3, 8, 8) and torch.equal(made[:, 0], made[:, 2])
    means = (made.float() / 127.5 - 1).mean((1, 2, 3))
    assert torch.allclose(means, torch.tensor([-0.5, 0.5]).repeat(4), atol=0.15)
    plain = make(gaussian_bundle(channels=3), tmp_path / "nothing", records=[{}] * 6, batch=6, steps=30)
    values = plain.float() / 127.5 - 1
    assert abs(float(values.mean())) < 0.03 and abs(float(values.std()) - DEVIATION) < 0.04
    with pytest.raises(RequestError, match="one of 2 classes, a record of the data has label None"):
        make(gaussian_bundle(means=(-0.5, 0.5)), tmp_path / "none", records=[{"caption": "x"}])


def test_estimates_of_pixels_are_held_within_their_bounds_and_latents_are_not(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in generating: models of epsilon are measured worse without."""
    held: list[float] = []

    def noting(denoiser: Denoiser) -> Denoiser:
        inner = clipped(denoiser)

        def outer(x: torch.Tensor, sigma: float) -> Estimate:
            estimate = inner(x, sigma)
            held.append(float(estimate.x0.abs().max()))
            return estimate

        return outer

    monkeypatch.setattr(generation, "clipped", noting)
    make(tiny_bundle, tmp_path / "latents", records=RECORDS[:1])
    assert not held
    make(gaussian_bundle(means=(-1.5, 1.5)), tmp_path / "pixels", records=[{"caption": "x", "label": 1}])
    assert len(held) == 3 and max(held) <= 1


def test_guidance_needs_something_to_leave_out(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="guidance 2: the model was not trained without what it is told"):
        generate_pictures(gaussian_bundle(), [{}], tmp_path / "a", REQUEST.changed(guidance=2.0), seed=0, batch=1)
