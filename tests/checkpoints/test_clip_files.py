"""CLIP with both towers: folders that transformers wrote, and our own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.conftest import randomise

from langevin.checkpoints.clip_files import OPENAI_MEAN, ClipConfig, load_clip, write_clip
from langevin.errors import CheckpointError
from langevin.evaluation.features import ClipFeatures, clip_score, embed_texts
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig

CAPTIONS = ["a red apple", "a blue house and a cat", ""]


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> transformers.CLIPModel:
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "projection_dim": 24}
    config = transformers.CLIPConfig(
        text_config={
            **shared, "vocab_size": len(tokenizer), "hidden_size": 32, "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.eos, "hidden_act": "gelu",
        },
        vision_config={**shared, "hidden_size": 40, "image_size": 16, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=24,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    randomise(model, 3)
    return model


@pytest.fixture(scope="module")
def folder(reference: transformers.CLIPModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny-clip"
    reference.save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer.to_json())
    return path


@torch.no_grad()
def test_a_hugging_face_folder_gives_what_transformers_gives(
    reference: transformers.CLIPModel, folder: Path, tokenizer: Tokenizer
) -> None:
    clip = load_clip(folder)
    assert clip.config.mean == OPENAI_MEAN and clip.name == "tiny-clip" and len(clip.sha256) == 64
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = torch.tensor([tokenizer.padded(tokenizer.encode(text)) for text in CAPTIONS])
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (clip.config.mean, clip.config.deviation))
    expected = reference(input_ids=tokens, pixel_values=((images + 1) / 2 - mean) / deviation)
    features, texts = ClipFeatures.of(clip)(images), embed_texts(clip, CAPTIONS)
    unit = torch.nn.functional.normalize
    assert (unit(features, dim=-1) - expected.image_embeds).abs().max() <= 1e-4
    assert (unit(texts, dim=-1) - expected.text_embeds).abs().max() <= 1e-4
    cosines = (expected.image_embeds * expected.text_embeds).sum(1).clamp(min=0)
    assert (clip_score(features, texts) - 100 * cosines).abs().max() <= 1e-2
    assert expected.text_embeds.std() > 0.01


def test_the_folders_own_normalisation_is_taken(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5], "do_resize": True}))
    try:
        assert load_clip(folder).config.deviation == (0.25, 0.5, 0.5)
        path.write_text(json.dumps({"image_mean": [0.5, 0.5]}))
        with pytest.raises(CheckpointError, match=r"image_mean = .*: expected three numbers"):
            load_clip(folder)
    finally:
        path.unlink()


def test_our_own_file_holds_both_towers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = ClipConfig(
        text=ClipTextConfig(
            vocabulary=len(tokenizer), width=32, layers=1, heads=2, mlp_width=48, projection=16,
            eos_token=tokenizer.eos, activation="gelu",
        ),
        image=ClipImageConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2, mlp_width=48, projection=16),
    )  # fmt: skip
    clip = Clip(ClipText(config.text), ClipImage(config.image))
    randomise(clip, 5)
    path = tmp_path / "clip.safetensors"
    write_clip(clip, config, tokenizer, path)
    again = load_clip(path)
    assert again.config == config and again.tokenizer.to_json() == tokenizer.to_json()
    for name, value in {**again.text.state_dict(), **again.image.state_dict()}.items():
        assert torch.equal(value, clip.state_dict()[name].half().float()), name
    first = path.read_bytes()
    write_clip(clip, config, tokenizer, path)
    assert path.read_bytes() == first


def test_what_is_no_clip_is_refused(folder: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no CLIP with both towers.*clip\.safetensors of a training run"):
        load_clip(model_file)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    save_file({n: v for n, v in weights.items() if n != "text_projection.weight"}, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(text_projection.weight\)"):
        load_clip(broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(CheckpointError, match="model_type: 'siglip'; only 'clip'"):
        load_clip(broken)
