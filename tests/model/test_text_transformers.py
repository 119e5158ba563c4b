"""T5, BERT and CLIP of the transformers library as text encoders, against the library itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.encoder_folders import write_encoder
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel

from langevin.checkpoints.encoders import encoder_of
from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.model.text_transformers import EncoderKind, TransformersEncoder, open_encoder

KINDS = ("t5", "bert", "clip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    for kind in KINDS:
        write_encoder(root / kind, kind)
    return root


def encoder(folders: Path, kind: str, length: int = 12) -> TransformersEncoder:
    return open_encoder(folders / kind, EncoderKind(kind), length)


TEXTS = ["a red circle", "", "A green square left of a blue triangle", "unheard words"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_the_librarys(folders: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders / kind)
    reference = {"t5": T5EncoderModel, "bert": AutoModel, "clip": CLIPTextModel}[kind].from_pretrained(folders / kind)
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    mask = batch.attention_mask if kind != "clip" else None
    with torch.no_grad():
        expected = reference.eval()(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
    if mask is not None:
        expected = expected * mask[..., None]
    ours = encoder(folders, kind)
    encoded = ours.encode(TEXTS)
    assert encoded.token_ids == tuple(tuple(row) for row in batch.input_ids.tolist()) and not encoded.notices
    assert encoded.context.shape == (4, 12, ours.width) and ours.width == 32
    torch.testing.assert_close(encoded.context, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.states(TEXTS), encoded.context)
    assert not ours.network.training and not any(p.requires_grad for p in ours.network.parameters())


@pytest.mark.parametrize("kind", ("t5", "bert"))
def test_padding_says_nothing(folders: Path, kind: str) -> None:
    short, long = (encoder(folders, kind, length).states(["a red circle"])[0] for length in (8, 20))
    real = 4 if kind == "t5" else 5
    assert (short[real:] == 0).all() and (long[real:] == 0).all() and (short[:real] != 0).all()
    torch.testing.assert_close(short[:real], long[:real], rtol=1e-5, atol=1e-6)


def test_a_text_has_the_same_states_beside_any_others_and_under_autocast(folders: Path) -> None:
    one = encoder(folders, "t5").states(["a red circle"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(folders, "t5").states(["blue", "a red circle", "blue"])[1:2], one)


def test_what_has_no_effect_is_said(folders: Path) -> None:
    ours = encoder(folders, "t5")
    plain = ours.encode(["a red circle"]).context
    weighted = ours.encode(["a (red:1.3) circle", "a red BREAK circle"])
    assert torch.equal(weighted.context, plain.expand(2, -1, -1))
    assert weighted.notices == ("prompt 'a red circle': weights and BREAK have no effect with T5",)
    literal = ours.encode(["a (red:1.3) circle"], weighting="none")
    assert not literal.notices and not torch.equal(literal.context, plain)
    long = " ".join(["red"] * 11 + ["blue"])
    for way in ("chunk", "truncate"):
        cut = ours.encode([long], long=way)
        assert torch.equal(cut.context, ours.encode([" ".join(["red"] * 11)]).context)
        assert cut.notices[0].endswith("11 tokens fit; cut off: 'blue'")
    with pytest.raises(RequestError, match="more than the 11 tokens that fit: shorten it"):
        ours.encode([long], long="error")
    with pytest.raises(RequestError, match="clip_skip 1: this model's text encoder is T5"):
        ours.encode(["red"], clip_skip=1)
    with pytest.raises(RequestError, match="no prompt was given"):
        ours.encode([])


def test_weights_that_overflow_run_in_float32(folders: Path, tmp_path: Path) -> None:
    half = open_encoder(folders / "t5", EncoderKind.T5, 12, dtype=torch.bfloat16)
    assert half.states(["red"]).dtype == torch.bfloat16 and half.float32().states(["red"]).dtype == torch.float32
    broken = copied(folders, tmp_path, "bert")
    weights = load_file(broken / "model.safetensors")
    weights["embeddings.LayerNorm.bias"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFiniteError, match="BERT gave NaN or infinity in float32"):
        open_encoder(broken, EncoderKind.BERT, 12).encode(["red"])


def copied(folders: Path, tmp_path: Path, kind: str) -> Path:
    shutil.copytree(folders / kind, tmp_path / kind)
    return tmp_path / kind


def test_a_folder_that_is_something_else_is_refused_in_one_line(folders: Path, tmp_path: Path) -> None:
    def refused(message: str, kind: str = "bert", length: int = 12) -> None:
        with pytest.raises(CheckpointError, match=message) as error:
            open_encoder(folder, EncoderKind(kind), length)
        assert "\n" not in str(error.value)

    folder = tmp_path / "nowhere"
    refused("nowhere is not a folder")
    folder = copied(folders, tmp_path, "bert")
    refused("holds a model of type 'bert', not t5", kind="t5")
    refused("a length of 41 tokens, BERT has 40 positions here", length=41)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.1.output.dense.bias" not in k}, folder / "model.safetensors")
    refused(r"1 of the encoder's weights are missing, the first encoder\.layer\.1\.output\.dense\.bias")
    (folder / "model.safetensors").write_bytes(b"nothing")
    refused("cannot be read as BERT")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("weights are read from safetensors files alone")
    (folder / "tokenizer.json").unlink()
    refused("only fast tokenizers are read")
    (folder / "config.json").write_text("{")
    refused("config.json cannot be read")


def test_without_the_library_the_extra_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'langevin\[text\]'"):
        encoder(folders, "t5")


def test_a_record_leads_to_its_folder_and_to_no_other(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(folders, tmp_path / "before", "t5")
    ours = open_encoder(folder, EncoderKind.T5, 12)
    assert {*ours.record.files} >= {"config.json", "tokenizer.json", "model.safetensors"}
    states = ours.states(["red"])
    model = tmp_path / "models" / "model.safetensors"
    model.parent.mkdir()
    assert torch.equal(encoder_of(ours.record, [model]).states(["red"]), states)
    folder.rename(model.parent / "t5")
    assert torch.equal(encoder_of(ours.record, [model]).states(["red"]), states)
    with pytest.raises(CheckpointError, match=r"T5 from .*t5, is not there: put its folder 't5' beside the model"):
        encoder_of(ours.record, [])
    monkeypatch.setenv("LANGEVIN_MODELS", str(model.parent))
    assert torch.equal(encoder_of(ours.record, []).states(["red"]), states)
    config = json.loads((model.parent / "t5" / "config.json").read_text())
    (model.parent / "t5" / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.5}))
    with pytest.raises(CheckpointError, match=r"not the text encoder that the model was trained with: its config.json"):
        encoder_of(ours.record, [model])
