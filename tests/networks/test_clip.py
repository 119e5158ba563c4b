"""The CLIP towers against transformers', and by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tests.networks.network_pairs import difference, randomise

from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig

EOS = 99
TEXT = ClipTextConfig(vocabulary=100, width=64, layers=4, heads=4, mlp_width=96, eos_token=EOS)
IMAGE = ClipImageConfig(image_size=24, patch_size=8, width=48, layers=3, heads=3, mlp_width=80, projection=None)


def reference_text(config: ClipTextConfig) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        max_position_embeddings=config.positions,
        hidden_act=config.activation,
        projection_dim=config.projection or 1,
        bos_token_id=98,
        eos_token_id=config.eos_token,
        pad_token_id=0,
        attn_implementation="eager",
    )


def reference_image(config: ClipImageConfig) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection or 1,
        attn_implementation="eager",
    )


def load(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """By name: ours are those of the published files, before which transformers may leave out the tower's name."""
    randomise(theirs)
    state: dict[str, Any] = theirs.state_dict()
    towers = {name.split(".")[0] for name in ours.state_dict()}
    if not any(name.split(".")[0] in towers for name in state):
        (tower,) = towers
        state = {f"{tower}.{name}": value for name, value in state.items()}
    ours.load_state_dict(state, strict=True)


def tokens(*lengths: int) -> torch.Tensor:
    """Rows of random words with the first end token after `length` of them; the rest are end tokens too."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 98, (len(lengths), 77), generator=generator)
    for row, length in zip(rows, lengths, strict=True):
        row[0] = 98
        row[length + 1 :] = EOS
    return rows


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_states_agree_at_every_layer(activation: Any) -> None:
    config = replace(TEXT, activation=activation)
    ours, theirs = ClipText(config).eval(), transformers.CLIPTextModel(reference_text(config)).eval()
    load(ours, theirs)
    ids = tokens(0, 5, 75)
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
        for layer in range(-1, -config.layers - 1, -1):
            normed = theirs.final_layer_norm(expected.hidden_states[layer])
            assert difference(ours(ids, layer).states, normed) < 1e-5
        result = ours(ids)
    assert difference(result.states, expected.last_hidden_state) < 1e-5
    assert difference(result.pooled, expected.pooler_output) < 1e-5


def test_projected_text_agrees() -> None:
    config = replace(TEXT, projection=40)
    ours, theirs = ClipText(config).eval(), transformers.CLIPTextModelWithProjection(reference_text(config)).eval()
    load(ours, theirs)
    with torch.no_grad():
        assert difference(ours(tokens(3, 20)).pooled, theirs(tokens(3, 20)).text_embeds) < 1e-5


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_vector_agrees(activation: Any) -> None:
    config = replace(IMAGE, activation=activation)
    ours, theirs = ClipImage(config).eval(), transformers.CLIPVisionModel(reference_image(config)).eval()
    load(ours, theirs)
    image = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(ours(image), theirs(image).pooler_output) < 1e-5


def test_pair_agrees() -> None:
    text, image = ClipText(replace(TEXT, projection=40)), ClipImage(replace(IMAGE, projection=40))
    ours = Clip(text, image).eval()
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=reference_text(text.config).to_dict(),
            vision_config=reference_image(image.config).to_dict(),
            projection_dim=40,
            attn_implementation="eager",
        )
    ).eval()
    load(ours, theirs)
    ids, picture = tokens(3, 20, 1), torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=picture)
        assert difference(ours.embed_text(ids), expected.text_embeds) < 1e-5
        assert difference(ours.embed_image(picture), expected.image_embeds) < 1e-5
        assert difference(ours(ids, picture), expected.logits_per_image) < 1e-5


def test_last_but_one_layer_is_a_tower_without_its_last() -> None:
    """Stable Diffusion 2 in the original file has 24 layers and reads -2; the diffusers folder has 23 and reads -1."""
    full, cut = ClipText(TEXT).eval(), ClipText(replace(TEXT, layers=TEXT.layers - 1)).eval()
    randomise(full)
    cut.load_state_dict({k: v for k, v in full.state_dict().items() if k in cut.state_dict()})
    with torch.no_grad():
        assert torch.equal(full(tokens(9), -2).states, cut(tokens(9)).states)
        assert torch.equal(full(tokens(9), -2).pooled, cut(tokens(9)).pooled)


def test_a_token_sees_only_what_is_before_it() -> None:
    tower = ClipText(TEXT).eval()
    randomise(tower)
    a = tokens(40)
    b = a.clone()
    b[0, 10] = (a[0, 10] + 1) % 90
    with torch.no_grad():
        before, after = tower(a).states, tower(b).states
    assert torch.equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] - after[:, 10:]).abs().amax(-1).min() > 0


def test_short_sequences_are_taken_and_long_ones_refused() -> None:
    tower = ClipText(TEXT).eval()
    randomise(tower)
    with torch.no_grad():
        assert difference(tower(tokens(40)[:, :12]).states, tower(tokens(40)).states[:, :12]) < 1e-5
    with pytest.raises(ValueError, match="78 tokens: this text tower takes at most 77"):
        tower(torch.zeros(1, 78, dtype=torch.int64))
    for layer in (0, -5):
        with pytest.raises(ValueError, match=rf"layer {layer}: must lie in \[-4, -1\]"):
            tower(tokens(1), layer)


def test_pair_shares_its_parameters_with_the_towers() -> None:
    text, image = ClipText(replace(TEXT, projection=8)), ClipImage(replace(IMAGE, projection=8))
    pair = Clip(text, image)
    assert len(list(pair.parameters())) == len(list(text.parameters())) + len(list(image.parameters())) + 1
    assert set(pair.state_dict()) == {*text.state_dict(), *image.state_dict(), "logit_scale"}
    with torch.no_grad():
        for p in pair.parameters():
            p.add_(1)
    assert all(torch.equal(p, pair.state_dict()[name]) for name, p in text.named_parameters())
    assert pair.to(torch.bfloat16).embed_text(tokens(2)).dtype == torch.bfloat16


def test_pair_learns_which_text_belongs_to_which_picture() -> None:
    pair = Clip(ClipText(replace(TEXT, projection=16)), ClipImage(replace(IMAGE, projection=16)))
    ids, picture = tokens(3, 4, 5, 6, 7, 8), torch.randn(6, 3, 24, 24)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=1e-3)
    target = torch.arange(6)
    for _ in range(30):
        logits = pair(ids, picture)
        loss = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (pair(ids, picture).argmax(1) == target).all()
    assert float(loss.detach()) < 0.5
    assert [name for name, p in pair.named_parameters() if p.grad is None] == []


def test_parameter_totals_of_stable_diffusion() -> None:
    with torch.device("meta"):
        sd1 = ClipText(ClipTextConfig())
        sd2 = ClipText(ClipTextConfig(width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu"))
    assert sum(p.numel() for p in sd1.parameters()) == 123_060_480
    assert len(sd1.state_dict()) == 196
    assert sum(p.numel() for p in sd2.parameters()) == 340_387_840
    assert len(sd2.state_dict()) == 372


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="width 64 is not a positive multiple of heads 5"):
        replace(TEXT, heads=5)
    with pytest.raises(ValueError, match="width 64 is not a positive multiple of heads 0"):
        replace(TEXT, heads=0)
    with pytest.raises(ValueError, match="layers 0: must be at least 1"):
        replace(TEXT, layers=0)
    with pytest.raises(ValueError, match="patch_size 0: must be at least 1"):
        replace(IMAGE, patch_size=0)
    with pytest.raises(ValueError, match="activation 'relu'"):
        replace(TEXT, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patch_size 7 does not divide image_size 24"):
        replace(IMAGE, patch_size=7)
    with pytest.raises(ValueError, match="projections None"):
        Clip(ClipText(TEXT), ClipImage(replace(IMAGE, projection=8)))
    with pytest.raises(ValueError, match="this image tower takes"):
        ClipImage(IMAGE)(torch.zeros(1, 3, 16, 16))
