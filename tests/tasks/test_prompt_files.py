"""Files that prompts name: taken out of the text, put into the model, written into the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from langevin.checkpoints.additions import add_embedding, add_lora
from langevin.checkpoints.embeddings import Embedding, EmbeddingLayout, write_embedding
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.lora import LoraLayout, write_lora
from langevin.cli import main as cli
from langevin.errors import LangevinError, RequestError
from langevin.images.parameters import parse_parameters
from langevin.images.png import read_png
from langevin.networks.lora import LoraWeights
from langevin.tasks.from_text import text_to_image
from langevin.tasks.prompt_files import take_files
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.tasks.runner import run


@pytest.fixture
def models(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as ComfyUI's, with two LoRAs and an embedding for the small model."""
    root = tmp_path / "programs"
    monkeypatch.setenv("LANGEVIN_MODELS", str(root))
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(model_file)
    generator = torch.Generator().manual_seed(0)
    for name in ("models/loras", "models/embeddings", "models/vae"):
        (root / name).mkdir(parents=True)
    layer = "middle_block.1.transformer_blocks.0.attn2.to_v"
    rows, columns = bundle.diffusion.network.get_parameter(f"{layer}.weight").shape
    for name in ("ink", "wash"):
        down, up = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
        parts = {"unet": {layer: LoraWeights(down, up, 4.0)}}
        write_lora(root / "models/loras" / f"{name}.safetensors", parts, bundle, LoraLayout.KOHYA)
    word = Embedding("x", torch.randn(2, 32, generator=generator))
    write_embedding(root / "models/embeddings/flat.safetensors", word, EmbeddingLayout.A1111)
    return root / "models"


def request(prompt: str, **options: object) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, steps=2, seed=3, **options)


def test_what_is_taken_out(models: Path) -> None:
    asked, files = take_files(
        request("<lora:ink:0.5>a red apple, embedding:flat <lora:wash>", negative="(embedding:flat:1.2)")
    )
    assert asked.prompt == "a red apple, <flat>" and asked.negative == "(<flat>:1.2)"
    ink, wash = models / "loras/ink.safetensors", models / "loras/wash.safetensors"
    assert files.loras == ((ink, 0.5), (wash, 1.0))
    assert files.embeddings == ((models / "embeddings/flat.safetensors", "<flat>"),)
    options = files.added_to(ModelOptions(lora=("first",)))
    assert options.lora == ("first", f"{ink}:0.5", f"{wash}:1.0")
    assert options.embedding == (f"{models / 'embeddings/flat.safetensors'}:<flat>",)
    for text in ("a cat", "a <b> c", "the embedding: flat", "<loras:x>"):
        plain = request(text)
        assert take_files(plain)[0] is plain, text
    literal = request("a <lora:nothing:1>", weighting="none")
    assert take_files(literal)[0] is literal


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a <lora:inc:1>", "'inc' in the prompt: no LoRA of that name in "),
        ("a <lora:inc:1>", "; did you mean 'ink'?"),
        ("a <lora:../loras/ink:1>", "no LoRA of that name"),
        ("a <lora:ink:much>", "'<lora:ink:much>': 'much' is not a number: write <lora:NAME:0.8>"),
        ("a <lora:ink:nan>", "is not a number"),
        ("a <lora:ink:>", "'' is not a number"),
        ("a <lora:ink:1:0.5>", "has 2 strengths: give one"),
        ("a <hypernet:x:1>", "hypernetworks are not supported"),
        ("a embedding:flot", "no embedding of that name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(prompt: str, said: str, models: Path) -> None:
    with pytest.raises(LangevinError) as error:
        take_files(request(prompt))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_lora_in_the_negative_prompt_is_refused(models: Path) -> None:
    with pytest.raises(RequestError, match="a LoRA changes the whole model, name it in the prompt"):
        take_files(request("a", negative="<lora:ink:1>"))


def test_a_prompt_does_what_the_options_do(model_file: Path, models: Path) -> None:
    bundle = load_bundle(model_file)
    named = run(text_to_image(bundle, request("<lora:ink:0.5> a embedding:flat apple"))).finish().images[0]
    options = add_lora(bundle, models / "loras/ink.safetensors", 0.5)
    options = add_embedding(options, models / "embeddings/flat.safetensors", "<flat>")
    given = run(text_to_image(options, request("a <flat> apple"))).finish().images[0]
    plain = run(text_to_image(bundle, request("a apple"))).finish().images[0]
    assert named.tobytes() == given.tobytes() != plain.tobytes()


def test_it_is_in_the_picture_and_is_made_again(
    model_file: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a embedding:flat apple<lora:ink:0.5>", "-m", str(model_file), "--steps", "2", "--seed", "1"]
    assert cli.run([*command, "-o", "a.png", "--vae", str(model_file)]) == 0
    picture, manifest = read_png("a.png")
    assert manifest["request"]["prompt"] == "a <flat> apple"
    assert [(a["kind"], a["name"]) for a in manifest["model"]["additions"]] == [
        ("vae", "tiny.safetensors"), ("lora", "ink.safetensors"), ("embedding", "flat.safetensors"),
    ]  # fmt: skip
    assert str(models) not in json.dumps(manifest)
    text = str(Image.open("a.png").info["parameters"])
    assert parse_parameters(text).prompt == "a <flat> apple <lora:ink:0.5>"
    capsys.readouterr()
    # The LoRA and the embedding are found by name, the model and its autoencoder by the folder.
    again = ["reproduce", "a.png", "--verify", "-m", str(model_file), "--additions", str(model_file.parent)]
    assert cli.run(again) == 0
    assert "the same, pixel for pixel" in capsys.readouterr().out
    assert picture.size == (32, 32)
    assert cli.run([command[0], "a <lora:inc:1>", *command[2:], "-o", "b.png"]) == 2
    assert "did you mean 'ink'?" in capsys.readouterr().err and not Path("b.png").exists()


def test_explain_puts_them_in_too(model_file: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "<lora:ink:1>a embedding:flat", "-m", str(model_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["text"] for t in found["prompt"][0]["chunks"][0]] == ["a</w>", "<flat>", "<flat>_1"]
