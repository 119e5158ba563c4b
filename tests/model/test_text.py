"""The whole path from a text to the context, against transformers' tokenizer and text model."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.model.prompt import Weighting, parse
from langevin.model.text import TextEncoder
from langevin.model.tokenizer import Tokenizer, _standard_vocabulary
from langevin.networks.clip import ClipText, ClipTextConfig

LAYERS = 4
PROMPTS = [
    "",
    "a photo of a red apple on a wooden table, 4k, it's 2024!",
    "ÀÉÎ 日本語 😀 (not weighted:1.3) [x] \\(y\\)",
    "word " * 120,
]


def randomise(network: Any, seed: int) -> Any:
    """Weights that make every part matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return network.eval()


class Pair(NamedTuple):
    ours: TextEncoder
    states: Callable[[list[int], int], Tensor]
    """The reference's states of one line of ids at hidden_states[layer], final norm included, L D."""
    tokenize: Callable[..., Any]


def make_pair(pad: str, activation: str, layer: int) -> Pair:
    transformers = pytest.importorskip("transformers")
    vocab, merges = _standard_vocabulary()
    tokenizer = transformers.CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad)
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=77,
        hidden_act=activation,
        projection_dim=32,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=vocab[pad],
    )
    theirs = randomise(transformers.CLIPTextModel(config), 5)
    network = ClipText(
        ClipTextConfig(width=32, layers=LAYERS, heads=4, mlp_width=64, activation=activation)  # type: ignore[arg-type]
    )
    state = theirs.state_dict()
    network.load_state_dict({f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()})
    norm = getattr(theirs, "text_model", theirs).final_layer_norm

    @torch.no_grad()
    def states(ids: list[int], layer: int) -> Tensor:
        hidden = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return norm(hidden[layer])[0]

    encoder = TextEncoder(network.eval(), Tokenizer.clip(pad=vocab[pad]), layer=layer)
    return Pair(encoder, states, tokenizer)


@pytest.fixture(scope="module")
def sd1() -> Pair:
    return make_pair("<|endoftext|>", "quick_gelu", -1)


@pytest.fixture(scope="module")
def sd2() -> Pair:
    """Penultimate layer, final norm, padding with 0."""
    return make_pair("!", "gelu", -2)


def close(a: Tensor, b: Tensor) -> bool:
    assert a.shape == b.shape
    return bool((a - b).abs().max() < 1e-5)


# -- as diffusers encodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["sd1", "sd2"])
@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_literal_text_equals_transformers(
    style: str, clip_skip: int, prompt: str, request: pytest.FixtureRequest
) -> None:
    pair: Pair = request.getfixturevalue(style)
    found = pair.ours.encode([prompt], weighting="none", long="truncate", clip_skip=clip_skip)
    ids = pair.tokenize(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert found.token_ids == (tuple(ids),)
    assert close(found.context[0], pair.states(ids, pair.ours.layer - clip_skip))
    assert bool(found.notices) == (prompt == PROMPTS[-1])


def test_plain_text_is_the_same_in_every_weighting(sd1: Pair) -> None:
    text = PROMPTS[1]
    first, *others = (sd1.ours.encode([text], weighting=w).context for w in Weighting)
    assert all(torch.equal(first, other) for other in others)


# -- chunks and weights -------------------------------------------------------------------------------------------


def independent_a1111(pair: Pair, sections: list[list[tuple[str, float]]]) -> Tensor:
    """Windows of 75 tokens without a comma in sight, each multiplied by its weights, its mean restored."""
    pad, parts = pair.ours.tokenizer.pad, []
    for section in sections:
        tokens = [(i, w) for text, w in section for i in pair.tokenize(text, add_special_tokens=False).input_ids]
        for start in range(0, max(len(tokens), 1), 75):
            window = tokens[start : start + 75]
            rest = 77 - 2 - len(window)
            ids = [49406, *(i for i, _ in window), 49407, *[pad] * rest]
            weights = torch.tensor([1.0, *(w for _, w in window), 1.0, *[1.0] * rest])[:, None]
            z = pair.states(ids, pair.ours.layer)
            weighted = z * weights
            parts.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(parts)


@pytest.mark.parametrize("style", ["sd1", "sd2"])
def test_random_prompts_equal_an_independent_reference(style: str, request: pytest.FixtureRequest) -> None:
    """Prompts of 1 to about 600 tokens, weights and BREAKs in them: nothing is cut, nothing is unsaid."""
    pair: Pair = request.getfixturevalue(style)
    rng = random.Random(3)
    words = ["cat", "red", "house", "zyxw", "unbelievable", "ü", "12", "sky"]
    for _ in range(40):
        sections = [
            [
                (" ".join(rng.choices(words, k=rng.randint(1, 40))) + " ", rng.choice([1.0, 1.2, 0.5, 1.75]))
                for _ in range(rng.randint(1, 5))
            ]
            for _ in range(rng.choice([1, 1, 1, 2, 3]))
        ]
        text = "BREAK".join("".join(f"({t}:{w})" for t, w in section) for section in sections)
        found = pair.ours.encode([text])
        expected = independent_a1111(pair, sections)
        assert found.context.shape[1] % 77 == 0
        assert (found.context[0] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        assert bool(found.notices) == (len(expected) > 77)


@pytest.mark.parametrize("style", ["sd1", "sd2"])
def test_comfyui_weights_start_from_the_empty_prompt(style: str, request: pytest.FixtureRequest) -> None:
    pair: Pair = request.getfixturevalue(style)
    text, plain = "a (red:1.5) apple (on a table:0.25)", "a red apple on a table"
    found = pair.ours.encode([text], weighting="comfyui")
    ids = [49406, *pair.tokenize(plain, add_special_tokens=False).input_ids, 49407]
    pad = pair.ours.tokenizer.pad
    z = pair.states(ids + [pad] * (77 - len(ids)), pair.ours.layer)
    empty = pair.states([49406, 49407] + [pad] * 75, pair.ours.layer)
    w = torch.ones(77, 1)
    w[2], w[4:7] = 1.5, 0.25
    assert close(found.context[0], empty + w * (z - empty))
    assert found.weights[0][:8] == (1.0, 1.0, 1.5, 1.0, 0.25, 0.25, 0.25, 1.0)


def test_weight_of_one_changes_no_bit(sd1: Pair) -> None:
    plain = sd1.ours.encode(["a red apple"]).context
    assert torch.equal(sd1.ours.encode(["a (red:1.0) apple"]).context, plain)
    assert not torch.equal(sd1.ours.encode(["a (red:1.2) apple"]).context, plain)


# -- lists of prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", list(Weighting))
def test_a_prompt_does_not_depend_on_its_neighbours(sd1: Pair, weighting: Weighting) -> None:
    prompts = ["a (red:1.3) apple", "", "[x] y, z", "a cat"]
    together = sd1.ours.encode(prompts, weighting=weighting)
    for i, prompt in enumerate(prompts):
        assert torch.equal(together.context[i : i + 1], sd1.ours.encode([prompt], weighting=weighting).context)


def test_shorter_prompts_are_filled_with_empty_chunks(sd2: Pair) -> None:
    found = sd2.ours.encode(["cat " * 200, "a dog"])
    assert found.context.shape == (2, 3 * 77, 32)
    assert [[c.length for c in chunks] for chunks in found.chunks] == [[75, 75, 50], [2, 0, 0]]
    empty = sd2.ours.encode([""]).context[0]
    assert torch.equal(found.context[1, 77:154], empty)
    assert torch.equal(found.context[1, 154:], empty)
    assert torch.equal(found.context[1, :77], sd2.ours.encode(["a dog"]).context[0])
    assert len(found.token_ids[1]) == len(found.weights[1]) == 231


def test_equal_windows_are_run_once(sd1: Pair) -> None:
    encoder = TextEncoder(sd1.ours.network, sd1.ours.tokenizer)
    encoder.encode(["a cat", "a cat", "a (cat:1.2)", "", "a dog BREAK"])
    assert encoder.calls == 3  # a cat, nothing, a dog: weights act afterwards
    encoder.encode(["a cat", "a cat BREAK a cat"])
    assert encoder.calls == 5  # the states of an earlier call are not kept


def test_notices_come_once(sd1: Pair) -> None:
    assert len(sd1.ours.encode(["cat " * 80] * 3).notices) == 1


def test_parsed_prompts_bring_their_syntax(sd1: Pair) -> None:
    found = sd1.ours.encode([parse("(a cat)", Weighting.NONE), "(a cat)"], weighting="a1111")
    assert found.weights[0] == (1.0,) * 77
    assert 1.1 in found.weights[1]
    assert torch.equal(found.context[:1], sd1.ours.encode(["(a cat)"], weighting="none").context)


# -- precision and errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", [Weighting.A1111, Weighting.COMFYUI])
def test_half_precision(dtype: torch.dtype, weighting: Weighting) -> None:
    torch.manual_seed(0)
    network = ClipText(ClipTextConfig(width=32, layers=2, heads=4, mlp_width=64))
    randomise(network, 1)
    full = TextEncoder(network, Tokenizer.clip()).encode(["a (red:1.3) apple"], weighting=weighting).context
    half = TextEncoder(network.to(dtype), Tokenizer.clip()).encode(["a (red:1.3) apple"], weighting=weighting).context
    assert half.dtype == dtype
    assert (half.float() - full).abs().max() < (0.2 if dtype is torch.bfloat16 else 0.05)


def test_no_gradients(sd1: Pair) -> None:
    assert not sd1.ours.encode(["a cat"]).context.requires_grad


@pytest.mark.parametrize(("style", "most"), [("sd1", 3), ("sd2", 2)])
def test_clip_skip_out_of_bounds(style: str, most: int, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(style).ours
    assert encoder.encode(["a"], clip_skip=most).context.isfinite().all()
    for wrong in (-1, most + 1):
        with pytest.raises(RequestError, match=f"0 to {most}"):
            encoder.encode(["a"], clip_skip=wrong)


def test_requests_that_cannot_be_met(sd1: Pair) -> None:
    with pytest.raises(RequestError, match="no prompt"):
        sd1.ours.encode([])
    with pytest.raises(RequestError, match="not finite"):
        sd1.ours.encode(["(a:3e38) (b:-3e38)"], weighting="comfyui")
    with pytest.raises(RequestError, match="weights nearer to 1"):
        sd1.ours.encode(["(a:" + "9" * 38 + ") b"])
    with pytest.raises(RequestError, match="weighting 'x'"):
        sd1.ours.encode(["a"], weighting="x")
    with pytest.raises(RequestError, match="76 tokens"):
        sd1.ours.encode(["cat " * 76], long="error")


def test_broken_network() -> None:
    network = randomise(ClipText(ClipTextConfig(width=32, layers=1, heads=2, mlp_width=32)), 0)
    with torch.no_grad():
        network.text_model.embeddings.token_embedding.weight[320] = float("nan")
    encoder = TextEncoder(network, Tokenizer.clip())
    assert encoder.encode(["cat"]).context.isfinite().all()
    with pytest.raises(NotFiniteError, match="float32"):
        encoder.encode(["a cat"])


def test_network_and_tokenizer_that_do_not_fit() -> None:
    config = ClipTextConfig(vocabulary=600, width=32, layers=1, heads=2, mlp_width=32)
    with pytest.raises(CheckpointError, match=r"49407.*600"):
        TextEncoder(ClipText(config), Tokenizer.clip())
    short = ClipTextConfig(vocabulary=49408, width=32, layers=1, heads=2, mlp_width=32, positions=40)
    with pytest.raises(CheckpointError, match="40 positions"):
        TextEncoder(ClipText(short), Tokenizer.clip())


def test_tokens_of_captions(sd1: Pair) -> None:
    rows = sd1.ours.tokens(["a (cat:1.2)", "", "word " * 100])
    assert rows.dtype == torch.int64
    assert rows.shape == (3, 77)
    assert rows[1].tolist() == [49406] + [49407] * 76
    assert rows[2].tolist() == [49406] + [2653] * 75 + [49407]
    assert rows[0].tolist() == sd1.tokenize("a (cat:1.2)", padding="max_length", max_length=77).input_ids
    assert sd1.ours.tokens([]).shape == (0, 77)
