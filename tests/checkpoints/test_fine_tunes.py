"""Models that others trained or merged further are models like any, whatever their files have more or less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.checkpoints import tiny
from torch import Tensor

from langevin.checkpoints import original
from langevin.checkpoints.describe import describe
from langevin.checkpoints.loader import load_bundle
from langevin.errors import CheckpointError

POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
FACTS = {"ss_sd_model_name": "v1-5.ckpt", "sd_merge_recipe": '{"type": "webui"}', "sshs_model_hash": "ab" * 32}


def pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without tables and position ids, as pruning scripts leave it."""
    return {n: v for n, v in tensors.items() if n.startswith(("model.", "first_", "cond_")) and n != POSITIONS}


def merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a weighted sum leaves it that took integers for weights."""
    return tensors | {POSITIONS: tensors[POSITIONS].half()}


def short_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder as newer transformers name it, with the remains of training beside."""
    renamed = {n.replace("transformer.text_model.", "transformer."): v for n, v in tensors.items()}
    return renamed | {"first_stage_model.loss.logvar": torch.zeros(1), "scale_factor": torch.tensor(0.18215)}


@pytest.mark.parametrize("change", [pruned, merged, short_names])
def test_a_fine_tune_is_a_model(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], sd1_file: Path, tmp_path: Path
) -> None:
    path = tiny.save(tmp_path / "style.safetensors", change(tiny.single_file(tiny.SD1)), FACTS)
    bundle = load_bundle(path)
    assert (bundle.info.family, bundle.info.task, bundle.info.stored_dtype) == ("sd1", "text-to-image", "F16")
    assert bundle.info.weights == "plain" and str(bundle.info.prediction) == "epsilon"
    tiny.same_outputs(bundle, load_bundle(sd1_file))
    assert describe(path)["stated_hash"] == "ab" * 32


def test_a_ckpt_is_read_when_it_is_trusted(sd1_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pickles state no vocabulary: they have CLIP's own, which is too large for a small model.
    monkeypatch.setattr(original, "standard_tokenizer", lambda names: tiny.TOKENIZER)
    path = tmp_path / "style.ckpt"
    torch.save({"state_dict": pruned(tiny.single_file(tiny.SD1)), "global_step": 6000, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_bundle(path)
    tiny.same_outputs(load_bundle(path, allow_pickle=True), load_bundle(sd1_file))
