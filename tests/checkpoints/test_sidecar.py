"""Configurations beside a file, and the order in which the prediction type's sources are believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.checkpoints import tiny

from langevin.checkpoints.loader import open_checkpoint
from langevin.checkpoints.sidecar import read_sidecar
from langevin.errors import CheckpointError, RequestError

TRAINING = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    scale_factor: 0.18215
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        num_head_channels: 64 # need to fix for flash-attn
        num_heads: -1
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        freeze: True
        layer: "penultimate"
"""


def test_a_training_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TRAINING)
    found = read_sidecar(path)
    assert (found.prediction, found.scale_factor, found.beta_start, found.beta_end) == ("v", 0.18215, 0.00085, 0.012)
    assert (found.num_heads, found.head_channels, found.text_layer) == (None, 64, -2)
    path.write_text(TRAINING.replace('    parameterization: "v"\n', ""))
    assert read_sidecar(path).prediction == "epsilon"  # the original code's default
    path.write_text(json.dumps({"model": {"params": {"parameterization": "eps", "scale_factor": "1e-1"}}}))
    found = read_sidecar(path)
    assert (found.prediction, found.scale_factor) == ("epsilon", 0.1)
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}))
    assert read_sidecar(path).prediction == "v"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "not YAML or JSON"),
        ("just text", "no configuration"),
        ("a: 1", "says nothing about the model"),
        ('{"prediction_type": "w"}', "prediction type 'w' is not known; known: eps, epsilon, v"),
        ("model: {params: {parameterization: [v]}}", "prediction type a list is not known"),
        ("model: {params: {scale_factor: -1}}", "scale_factor = -1: expected a positive number"),
        ("model: {params: {scale_factor: .nan}}", "expected a positive number"),
        ("model: {params: {unet_config: {params: {num_heads: 0}}}}", "num_heads = 0: expected a whole number"),
        ("!!python/object/apply:os.system ['true']", "not YAML or JSON"),
        (BOMB + "model: {params: {parameterization: *h}}", "a list is not known"),
        ("x: " + "y" * 1_000_001, "bytes; a configuration has at most"),
        ("[" * 5000, "not YAML or JSON"),
        ("\0", "not YAML or JSON"),
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=words) as error:
        read_sidecar(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    path, canary = tmp_path / "x.yaml", tmp_path / "canary"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        path.write_text(f"model: {tag} ['touch {canary}']\n")
        with pytest.raises(CheckpointError):
            read_sidecar(path)
        assert not canary.exists()


def sd2(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    return tiny.save(folder / "m.safetensors", tiny.single_file(tiny.SD2), metadata)


def test_the_file_beside_is_found_and_the_given_one_goes_first(tmp_path: Path) -> None:
    path = sd2(tmp_path)
    assert open_checkpoint(path).config.prediction is None
    (tmp_path / "m.json").write_text('{"description": "notes of another program"}')
    assert open_checkpoint(path).config.prediction is None
    (tmp_path / "m.json").write_text("{")
    (tmp_path / "m.yaml").write_text("notes: of another program")
    assert open_checkpoint(path).config.prediction is None
    (tmp_path / "m.yaml").write_text(TRAINING.replace('"v"', '"velocity"'))
    with pytest.raises(CheckpointError, match=r"m\.yaml: prediction type 'velocity' is not known"):
        open_checkpoint(path)
    (tmp_path / "m.yaml").write_text(TRAINING)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.prediction == "v" and checkpoint.prediction_from.endswith("m.yaml")
    given = tmp_path / "given.yaml"
    given.write_text("model: {params: {parameterization: eps}}")
    assert open_checkpoint(path, config=given).config.prediction == "epsilon"
    assert open_checkpoint(path, config=given, prediction="v").config.prediction == "v"
    # What the file says of itself stands above what lies beside it.
    assert open_checkpoint(sd2(tmp_path, {"modelspec.prediction_type": "epsilon"})).config.prediction == "epsilon"


def test_a_configuration_of_ours_can_be_given(tmp_path: Path) -> None:
    path = sd2(tmp_path)
    config = tmp_path / "c.json"
    config.write_text(open_checkpoint(path, prediction="v").config.to_json())
    assert open_checkpoint(path, config=config).config.prediction == "v"
    config.write_text('{"format": 1, "unet": {"colour": 3}}')
    with pytest.raises(CheckpointError, match=r"c\.json: langevin\.config: unet: unknown field 'colour'"):
        open_checkpoint(path, config=config)


@pytest.mark.parametrize(("step", "expected"), [(875_000, "epsilon"), (220_000, "epsilon"), (110_000, "v"), (7, None)])
def test_the_training_steps_of_the_published_pickles(tmp_path: Path, step: int, expected: str | None) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": tiny.single_file(tiny.SD2), "global_step": step}, path)
    with pytest.raises(CheckpointError, match="the standard vocabulary has 49408"):  # no place for a tokenizer of ours
        open_checkpoint(path, allow_pickle=True)
    tensors = tiny.single_file(tiny.SD2)
    name = "cond_stage_model.model.token_embedding.weight"
    tensors[name] = torch.zeros(49408, 1024, dtype=torch.float16).expand(49408, 1024)
    torch.save({"state_dict": tensors, "global_step": step}, path)
    checkpoint = open_checkpoint(path, allow_pickle=True)
    assert checkpoint.config.prediction == expected
    assert (step == 7) == any("global_step of 7 is not one" in notice for notice in checkpoint.notices)


def test_unknown_prediction_types_are_refused(tmp_path: Path) -> None:
    path = sd2(tmp_path)
    with pytest.raises(RequestError, match="prediction 'w': expected one of epsilon, x0, v"):
        open_checkpoint(path, prediction="w")
    with pytest.raises(CheckpointError, match=r"modelspec\.prediction_type 'w' is not known"):
        open_checkpoint(sd2(tmp_path, {"modelspec.prediction_type": "w"}))
