"""The whole evaluation of a tiny random model on drawn discs: its report, its page, and that a stopped run goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from tests.conftest import MakeBundle, randomise
from torch import Tensor

from langevin.checkpoints.clip_files import ClipConfig, ClipModel
from langevin.diffusion.core import Estimate
from langevin.errors import DataError, RequestError
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.features import ClipFeatures
from langevin.evaluation.figures import Figure
from langevin.evaluation.whole import run as module
from langevin.evaluation.whole.captions import LEVELS, caption_errors
from langevin.evaluation.whole.page import page
from langevin.evaluation.whole.parts import _verdict
from langevin.evaluation.whole.run import PARTS, evaluate_whole
from langevin.evaluation.whole.subject import Clock, Scale, Subject
from langevin.images.pixels import open_picture, to_tensor
from langevin.model.conditioning import Conditioning
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from langevin.tasks.request import GenerateRequest

STYLES = {"flat": ("flat",), "line": ("outlined drawing", "line")}
PAINTS = {"red apple": "#dd2e44", "blue heart": "#55acee"}
SMALL = Scale(
    samples=10, sweep_samples=8, attributes=10, sheet=4, samplers=("ddim", "unipc"), steps=(1, 2), guidances=(1.0, 2.0),
    batch=5,
)  # fmt: skip

Make = Callable[..., Subject]


@dataclass(frozen=True)
class Pictures:
    pictures: Tensor
    records: list[dict[str, Any]]
    fingerprint: str


def discs(names: list[str], split: str) -> Pictures:
    """Each name in two styles: a disc, filled or as a line, of its own size and colour."""
    pictures, records = [], []
    for i, name in enumerate(names):
        for style in STYLES:
            picture = Image.new("RGB", (32, 32), "white")
            radius = 6 + i % 9
            paint = PAINTS.get(name, f"hsl({i * 37 % 360}, 80%, 45%)")
            box = (16 - radius, 16 - radius, 16 + radius, 16 + radius)
            fill = paint if style == "flat" else None
            ImageDraw.Draw(picture).ellipse(box, fill=fill, outline=paint, width=2)
            pictures.append(((to_tensor(picture) + 1) * 127.5).round().to(torch.uint8))
            records.append({"caption": name, "style": style, "group": "Objects", "split": split})
    return Pictures(torch.cat(pictures), records, split * 8)


TRAIN = discs([*PAINTS, *(f"{a}{b}" for a in "bcdfg" for b in ("at", "og"))], "train")
HELD_OUT = discs([f"{a}ub" for a in "bcdfghjkl"], "val")


@pytest.fixture(scope="module")
def extractor(tokenizer: Tokenizer) -> OpenExtractor:
    config = ClipConfig(
        text=ClipTextConfig(
            vocabulary=len(tokenizer), width=32, layers=1, heads=2, mlp_width=32, projection=4, eos_token=tokenizer.eos
        ),
        image=ClipImageConfig(image_size=32, patch_size=8, width=32, layers=1, heads=2, mlp_width=32, projection=4),
    )
    text, image = ClipText(config.text), ClipImage(config.image)
    randomise(text, 0)
    randomise(image, 1)
    clip = ClipModel(text=text, image=image, tokenizer=tokenizer, config=config, name="tiny", files=())
    return OpenExtractor(kind="clip", extractor=ClipFeatures.of(clip), sha256="0" * 64, clip=clip)


@pytest.fixture(scope="module")
def make_subject(make_bundle: MakeBundle, extractor: OpenExtractor) -> Make:
    def make(folder: Path, **changed: Any) -> Subject:
        values = {
            "bundle": make_bundle(), "extractor": extractor, "train": TRAIN, "held_out": HELD_OUT, "styles": STYLES,
            "scale": SMALL, "request": GenerateRequest(prompt="", steps=1), "folder": folder, **changed,
        }  # fmt: skip
        return Subject(**values)

    return make


@pytest.fixture(scope="module")
def whole(make_subject: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluate_whole(make_subject(folder), command="the command")


def test_the_report_has_every_part_and_each_figure_its_number_of_pictures(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    assert list(report["parts"]) == list(PARTS)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    for name, part in report["parts"].items():
        for figure in part["figures"]:
            assert figure["generated"] or figure["reference"], (name, figure["name"])
    distances = {f["name"]: f for f in report["parts"]["distances"]["figures"]}
    first = distances["frechet distance: known names, training pictures"]
    assert first["generated"] == first["reference"] == 10 and first["real"] is not None
    assert first["settings"] == {"components": 4, "of": 4}
    second = distances["precision: new names, held-out pictures"]
    assert second["generated"] == second["reference"] == 9
    score = report["parts"]["clip-score"]["figures"][0]
    assert score["real"] is not None and score["chance"] is not None


def test_attributes_stand_beside_what_real_pictures_get(whole: tuple[Path, dict[str, Any]]) -> None:
    part = whole[1]["parts"]["attributes"]
    figures = {f["name"]: f for f in part["figures"]}
    # Two filled discs and their outlines are called by a colour, and nothing but single discs is drawn.
    assert figures["colour"]["real"] == 1 and figures["colour"]["chance"] == 0 and figures["colour"]["reference"] == 4
    assert figures["style"]["real"] > 0.7 and figures["style"]["chance"] == 0.5
    assert figures["two things"]["real"] == 1 and figures["two things"]["chance"] == 0
    assert part["details"]["single_pictures_counted_as_one"] == 1 and part["details"]["names"] == 12
    kinds = [p["kind"] for p in part["details"]["prompts"]]
    assert len(kinds) == 10 and {k: kinds.count(k) for k in kinds} == {"colour": 4, "style": 4, "two": 2}
    for prompt in part["details"]["prompts"]:
        assert 0 <= prompt["rank"] < 12 and isinstance(prompt["right"], bool)


def test_the_error_by_caption_is_that_of_a_denoiser_that_is_known() -> None:
    """One that draws what it is told, the latents of a caption's own picture; told nothing, it leaves the noise in."""
    pictures = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = pictures.float() / 127.5 - 1
    said = ["cat", "dog", "dog", "fox"]

    class Denoiser:
        device = torch.device("cpu")

        def denoise(self, x: Tensor, sigma: float, cond: Conditioning) -> Estimate:
            assert cond.context is not None
            told = [int(c) for c in cond.context.flatten()]
            return Estimate(torch.stack([x[i] if t < 0 else latents[t] for i, t in enumerate(told)]), None)

    class Words:
        def states(self, captions: list[str]) -> Tensor:
            return torch.tensor([[[float(said.index(c) if c else -1)]] for c in captions])

    bundle: Any = SimpleNamespace(
        diffusion=Denoiser(), text=Words(), autoencoder=SimpleNamespace(encode=lambda image: image)
    )
    found = caption_errors(bundle, pictures, said, [0.5, 2.0], batch=3)
    variance = float(latents.double().var())

    def apart(pairs: list[tuple[int, int]]) -> float:
        return sum(float((latents[a] - latents[b]).double().square().mean()) for a, b in pairs) / 4 / variance

    # The two dogs share a caption, whose picture is the first of them; another's is that of the next other name.
    assert found["own"] == pytest.approx([apart([(2, 1)])] * 2)
    assert found["another's"] == pytest.approx([apart([(0, 1), (1, 3), (2, 3), (3, 0)])] * 2)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).double()
    size = float(noise.square().mean()) / variance
    assert found["none"] == pytest.approx([0.25 * size, 4 * size], rel=1e-5)


def test_curves_have_a_point_for_each_setting_and_share_their_pictures(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    levels = report["parts"]["captions"]["details"]["points"]
    assert [(p["set"], p["sigma"]) for p in levels[:2]] == [("training pictures", 0.25), ("training pictures", 0.5)]
    assert len(levels) == 2 * len(LEVELS) and all(p["pictures"] == 8 for p in levels)
    points = report["parts"]["samplers"]["details"]["points"]
    assert [(p["sampler"], p["steps"]) for p in points] == [("ddim", 1), ("ddim", 2), ("unipc", 1), ("unipc", 2)]
    assert all(p["pictures"] == 8 and p["frechet"] >= 0 and 0 <= p["found"] <= p["found_among_ten"] for p in points)
    assert [p["guidance"] for p in report["parts"]["guidance"]["details"]["points"]] == [1, 2]
    blocks = {p.name: len(list(p.glob("*.png"))) for p in (folder / "pictures").iterdir()}
    assert blocks["known"] == 10 and blocks["new"] == 9 and blocks["attributes"] == 10 and blocks["sheet"] == 4
    assert set(blocks) == {"known", "new", "attributes", "sheet", "ddim-1-5", "ddim-2-5", "unipc-1-5", "unipc-2-5",
                           "dpmpp_2m-1-1", "dpmpp_2m-1-2"}  # fmt: skip


def test_the_page_links_only_pictures_that_are_there(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    text = (folder / "model-evaluation.md").read_text()
    links = re.findall(r"\]\((images/[^)]+)\)", text)
    assert sorted(links) == sorted(f"images/{p.name}" for p in (folder / "images").iterdir()) and len(links) == 12
    assert all(open_picture(folder / link).width <= 1300 for link in links)
    assert "This page was written by `the command`" in text and "sha256 000000000000" in text
    assert all(f"{heading}\n" in text for heading in ("## Does it copy?", "## 4 prompts", "## Guidance"))
    for row in [line for line in text.splitlines() if line.startswith("|")]:
        assert "nan" not in row and "None" not in row
    part = {k: v for k, v in report["parts"].items() if k == "autoencoder"}
    assert page({**report, "parts": part}).count("##") == 1


def test_a_stopped_run_goes_on_and_nothing_is_made_twice(
    whole: tuple[Path, dict[str, Any]], make_subject: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    class StoppedError(Exception):
        pass

    def stop(subject: Subject) -> Any:
        raise StoppedError

    parts = ["distances", "copying", "clip-score"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "PARTS", {**PARTS, "clip-score": PARTS["clip-score"]._replace(measure=stop)})
        with pytest.raises(StoppedError):
            evaluate_whole(make_subject(tmp_path), parts)
    assert (tmp_path / "distances.json").is_file() and not (tmp_path / "report.json").exists()
    subject = make_subject(tmp_path)
    calls: list[int] = []
    subject.bundle.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setitem(module.PARTS, "distances", PARTS["distances"]._replace(measure=stop))
    report = evaluate_whole(subject, parts)
    assert not calls

    def without_time(found: dict[str, Any]) -> dict[str, Any]:
        return {
            k: {n: v for n, v in part.items() if n != "seconds"} for k, part in found["parts"].items() if k in parts
        }

    assert without_time(json.loads(json.dumps(report))) == without_time(json.loads(json.dumps(whole[1])))


def test_another_evaluation_is_not_gone_on_with(whole: tuple[Path, dict[str, Any]], make_subject: Make) -> None:
    with pytest.raises(RequestError, match="holds an evaluation with another scale"):
        evaluate_whole(make_subject(whole[0], scale=replace(SMALL, seed=1)))
    with pytest.raises(RequestError, match="holds an evaluation with another generation"):
        evaluate_whole(make_subject(whole[0], request=GenerateRequest(prompt="", steps=3)))
    with pytest.raises(RequestError, match="part 'all' is unknown; choose from distances, clip-score"):
        evaluate_whole(make_subject(whole[0]), ["all"])


def test_what_cannot_be_measured_is_refused(make_subject: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="sweep-samples 3: at least 8"):
        Scale(sweep_samples=3)
    few = Pictures(TRAIN.pictures[:15], TRAIN.records[:15], "")
    with pytest.raises(DataError, match="15 held-out pictures are too few: at least 16"):
        make_subject(tmp_path, held_out=few)
    bundle = make_subject(tmp_path).bundle
    with pytest.raises(RequestError, match="no text-to-image model of latents"):
        make_subject(tmp_path, bundle=replace(bundle, autoencoder=None))


def test_the_time_that_is_left_follows_from_the_time_taken() -> None:
    now = [0.0]
    said: list[str] = []
    clock = Clock(100, said.append, lambda: now[0])
    clock.made(10, 6.0, "known: 1 of 10 pictures")
    assert clock.minutes == pytest.approx(0.9) and not said
    now[0] = 30
    clock.made(40, 24.0, "known: 5 of 10 pictures")
    assert said == ["known: 5 of 10 pictures; about 0 min more for pictures"] and clock.minutes == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("copied", "nearer", "expected"),
    [
        (0.7, 0.9, "mostly draws copies"),
        (0.1, 0.8, "draws what it has seen"),
        (0.1, 0.65, "leans on what it has seen"),
        (0.1, 0.5, "no nearer to single training pictures than new ones are"),
    ],
)
def test_the_verdict_follows_from_the_shares(copied: float, nearer: float, expected: str) -> None:
    figures = [
        Figure(name=f"{what}: known names, pixels", value=value, better="lower", real=real)
        for what, value, real in (
            ("as near as a copy", copied, 0.0),
            ("nearer than a new picture", 0.9, 0.5),
            ("relatively nearer than a new picture", nearer, 0.7),
        )
    ]
    verdict = _verdict(figures)
    assert verdict.partition(":")[0].endswith(expected) and f"in {nearer:.0%} of all pairs" in verdict
