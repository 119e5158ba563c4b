"""Latents on the disk, here and over a cluster, and text states in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.errors import CheckpointError, RequestError
from langevin.model.text import TextEncoder
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.clip import ClipText, ClipTextConfig
from langevin.training import caching
from langevin.training.caching import CacheConfig, TextStates, cached_latents, weights_key
from langevin.training.data import PictureSet
from langevin.training.objectives.autoencoder import encode_all
from langevin.training.randomness import generator


@pytest.fixture(scope="module")
def network() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1, latent_channels=2))


@pytest.fixture(scope="module")
def data() -> PictureSet:
    pictures = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "pictures"))
    return PictureSet(pictures, [{"caption": str(i)} for i in range(20)], "abc")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "ROWS", 8)


@pytest.mark.usefixtures("rows")
def test_latents_are_encoded_once(
    network: AutoencoderKL, data: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode_all(network, data, "cpu", batch=8)
    encoded: list[int] = []
    original = caching.encode_all

    def counted(
        network: AutoencoderKL, some: PictureSet, device: str, *, mirrored: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(some))
        if len(encoded) == 2 and not (tmp_path / "went").exists():
            raise KeyboardInterrupt
        return original(network, some, device, mirrored=mirrored)

    monkeypatch.setattr(caching, "encode_all", counted)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(network, data, "cpu", CacheConfig(), tmp_path)
    (tmp_path / "went").touch()
    folder = next((tmp_path / "cache").iterdir())
    assert [p.name for p in folder.iterdir()] == ["000000000-000000008.safetensors"]
    found = cached_latents(network, data, "cpu", CacheConfig(), tmp_path)
    assert encoded == [8, 8, 8, 4]  # the first part was there
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # A damaged part is made anew, the others are read.
    (folder / "000000008-000000016.safetensors").write_bytes(b"half")
    again = cached_latents(network, data, "cpu", CacheConfig(folder=str(tmp_path / "cache")), tmp_path / "elsewhere")
    assert encoded == [8, 8, 8, 4, 8]
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_one_batch_of_many_gives_what_encoding_all_gives(
    network: AutoencoderKL, data: PictureSet, tmp_path: Path
) -> None:
    found = cached_latents(network, data, "cpu", CacheConfig(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(found, encode_all(network, data, "cpu"), strict=True))
    assert caching.ROWS % 64 == 0  # the batches of encode_all do not straddle parts


def test_the_key_changes_with_every_weight_and_the_data(network: AutoencoderKL) -> None:
    key = weights_key(network, "latents", "abc")
    assert weights_key(network, "latents", "abc") == key != weights_key(network, "latents", "abd")
    with torch.no_grad():
        for parameter in network.parameters():
            before = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            assert weights_key(network, "latents", "abc") != key
            parameter.copy_(before)
    assert weights_key(network, "latents", "abc") == key


def test_other_pictures_have_a_folder_of_their_own(network: AutoencoderKL, data: PictureSet, tmp_path: Path) -> None:
    """A part of a set has the fingerprint of the whole."""
    for some in (data, PictureSet(data.pictures[5:], data.records[5:], data.fingerprint)):
        found = cached_latents(network, some, "cpu", CacheConfig(), tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(found, encode_all(network, some, "cpu"), strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_one_line(network: AutoencoderKL, data: PictureSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written .*: set cache\.folder to another one"):
        cached_latents(network, data, "cpu", CacheConfig(folder=str(tmp_path / "file")), tmp_path)


def test_without_ray_the_cluster_is_refused(
    network: AutoencoderKL, data: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langevin.training.cluster.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs ray, which is missing: pip install ray"):
        cached_latents(network, data, "cpu", CacheConfig(cluster="auto"), tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine alone, with real worker processes."""
    ray = pytest.importorskip("ray")
    source = str(Path(caching.__file__).parents[2])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield "auto"
    ray.shutdown()


@pytest.mark.slow
def test_a_cluster_gives_the_same_latents(
    cluster: str, network: AutoencoderKL, data: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(caching, "ROWS", 3)
    try:
        torch.set_num_threads(1)
        here = cached_latents(network, data, "cpu", CacheConfig(), tmp_path / "here")
        there = cached_latents(network, data, "cpu", CacheConfig(cluster=cluster), tmp_path / "there")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    names = [sorted(p.name for p in (tmp_path / n / "cache").rglob("*.safetensors")) for n in ("here", "there")]
    assert names[0] == names[1] and len(names[0]) == 7
    assert load_file(next((tmp_path / "there" / "cache").rglob("*.safetensors"))).keys() == {"mean", "deviation"}


@pytest.fixture(scope="module")
def text(tokenizer: Tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    config = ClipTextConfig(
        vocabulary=len(tokenizer), eos_token=tokenizer.eos, width=32, layers=2, heads=2, mlp_width=64
    )
    return TextEncoder(ClipText(config).eval(), tokenizer)


def test_a_caption_is_encoded_once_and_always_to_the_same_bits(text: TextEncoder) -> None:
    captions = ["a red apple", "a blue house", "a red apple", "a cat and a dog"]
    states = TextStates(text, "cpu")
    found = states.of(captions)
    assert found.shape == (4, 77, 32) and states.encoded == 3
    with torch.no_grad():
        whole = text.network(text.tokens(captions), layer=text.layer).states
    assert torch.allclose(found, whole, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        alone = [TextStates(text, "cpu").of([caption])[0] for caption in captions]
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    assert torch.equal(states.of(captions), found) and states.encoded == 3


def test_the_states_that_were_asked_for_last_stay_within_the_bound(text: TextEncoder) -> None:
    states = TextStates(text, "cpu", limit=2 * 77 * 32 * 4)
    first = states.of(["a", "b"])
    states.of(["a"])
    states.of(["c"])  # "b" is the one that goes
    assert states.encoded == 3
    assert torch.equal(states.of(["a"])[0], first[0]) and states.encoded == 3
    assert torch.equal(states.of(["b"])[0], first[1]) and states.encoded == 4
    none = TextStates(text, "cpu", limit=0)
    assert torch.equal(none.of(["a", "b", "a"]), first[[0, 1, 0]]) and none.encoded == 3
