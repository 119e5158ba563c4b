"""Textual-inversion files: both layouts, against diffusers' reader, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from langevin.checkpoints.additions import add_embedding, split_embedding
from langevin.checkpoints.convert import convert
from langevin.checkpoints.embeddings import Embedding, EmbeddingLayout, read_embedding, write_embedding
from langevin.checkpoints.loader import load_bundle
from langevin.errors import CheckpointError, RequestError


def word(count: int = 2, width: int = 768) -> Embedding:
    return Embedding("<style>", 0.1 * torch.randn(count, width, generator=torch.Generator().manual_seed(4)))


def test_both_layouts_come_back(tmp_path: Path) -> None:
    made = word()
    for layout, token in ((EmbeddingLayout.DIFFUSERS, "<style>"), (EmbeddingLayout.A1111, "my-style")):
        path = write_embedding(tmp_path / "my-style.safetensors", made, layout, overwrite=True)
        again = read_embedding(path)
        assert again.token == token and torch.equal(again.vectors, made.vectors)
    single = {"<one>": torch.ones(768, dtype=torch.float16)}  # diffusers writes a single vector so
    save_file(single, tmp_path / "one.safetensors")
    assert read_embedding(tmp_path / "one.safetensors").vectors.shape == (1, 768)


def test_diffusers_reads_our_file_as_we_do(sd1_file: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    convert(sd1_file, tmp_path / "folder", "diffusers", dtype="F32")
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None, local_files_only=True)
    path = write_embedding(tmp_path / "learned.safetensors", word(), EmbeddingLayout.DIFFUSERS)
    assert list(load_file(path)) == ["<style>"]
    pipe.load_textual_inversion(path)
    prompt = "a house in <style> style"
    changed = add_embedding(load_bundle(sd1_file), path)
    assert changed.text is not None
    mine = changed.text.tokens([prompt])
    ids = pipe.tokenizer(
        pipe.maybe_convert_prompt(prompt, pipe.tokenizer), padding="max_length", return_tensors="pt"
    ).input_ids
    assert torch.equal(mine, ids)
    with torch.no_grad():
        theirs = pipe.text_encoder(ids).last_hidden_state
        ours = changed.text.network(mine, changed.text.layer).states
        plain = load_bundle(sd1_file).text
        assert plain is not None
        without = plain.network(plain.tokens(["a house in style"]), plain.layer).states
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert float((ours - without).abs().max()) > 0.1


def test_a_word_takes_its_vectors_places_in_any_prompt(sd1_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(sd1_file)
    path = write_embedding(tmp_path / "my-style.safetensors", word(3), EmbeddingLayout.A1111)
    both = add_embedding(add_embedding(bundle, path), path, "<other>")
    assert both.text is not None and bundle.text is not None
    tokenizer, before = both.text.tokenizer, bundle.text.tokenizer
    first = len(before)
    assert both.text.network.config.vocabulary == bundle.text.network.config.vocabulary + 6
    assert tokenizer.encode("My-Style") == [first, first + 1, first + 2]
    assert tokenizer.encode("cats,my-style") == [*before.encode("cats,"), first, first + 1, first + 2]
    assert tokenizer.encode("<other>") == [first + 3, first + 4, first + 5]
    assert tokenizer.encode("my-styles") == before.encode("my-styles")  # another word
    encoded = both.text.encode(["a (my-style:1.2) house", "dogs"])
    assert encoded.weights[0][2:5] == (1.2, 1.2, 1.2)
    assert torch.equal(encoded.context[1], bundle.text.encode(["dogs"]).context[0])
    assert [a.word for a in both.info.additions] == ["my-style", "<other>"]
    with pytest.raises(CheckpointError, match="several tokens"):
        tokenizer.to_json()


def test_what_does_not_fit_is_said(sd1_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(sd1_file)
    path = tmp_path / "x.safetensors"
    for tensors, said in (
        ({"emb_params": torch.zeros(2, 1024)}, "width 1024 (Stable Diffusion 2.x)"),
        ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "for Stable Diffusion XL"),
        ({"a": torch.zeros(1, 768), "b": torch.zeros(1, 768)}, "2 tensors (a, b); expected an embedding"),
        ({"a": torch.zeros(1, 2, 768)}, "expected vectors"),
        ({"a": torch.zeros(2, 768, dtype=torch.int64)}, "expected vectors"),
        ({"a": torch.zeros(0, 768)}, "expected vectors"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as error:
            add_embedding(bundle, path)
        assert said in str(error.value) and "\n" not in str(error.value)
    save_file({"apple": torch.zeros(1, 768)}, path)
    with pytest.raises(RequestError, match="is a token already: choose another, as <apple>"):
        add_embedding(bundle, path)
    with pytest.raises(CheckpointError, match="no such file"):
        add_embedding(bundle, tmp_path / "nowhere.safetensors")
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"read from \.safetensors files"):
        add_embedding(bundle, tmp_path / "old.pt")


def test_a_path_and_its_word(tmp_path: Path) -> None:
    assert split_embedding("style.safetensors") == ("style.safetensors", None)
    assert split_embedding("style.safetensors:<mine>") == ("style.safetensors", "<mine>")
    odd = tmp_path / "a:b"
    odd.write_bytes(b"")
    assert split_embedding(str(odd)) == (str(odd), None)
