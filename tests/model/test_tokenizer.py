"""The tokenizer against transformers' CLIPTokenizer, and its own promises."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.errors import CheckpointError, RequestError
from langevin.model.tokenizer import Tokenizer, _standard_vocabulary

SD1_PAD, SD2_PAD = "<|endoftext|>", "!"

TEXTS = [
    "",
    " ",
    "  two  spaces\tand\n\nlines \u00a0\u3000\u2028\x85\x1f\x0b end ",
    "a photo of a cat",
    "HELLO World, ÀÉÎ Straße ΑΣ ΣΊΣΥΦΟΣ İstanbul ǅ ﬁ",
    "it's I'LL we're don’t they'Ve rock'n'roll ''s 'tis y'all'd've",
    "1 12 2024 3.14 1,000,000 ½ ² ١٢٣ １２ Ⅷ 第1",
    "!!! ?! ... — -- (a:1.2) [b] {c} <d> \\e/ `~@#$%^&*_=+|;:'\"",
    "hello! wow!!! a!b ! !",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇳🇴 👍🏽 ❤️ e\u0301 n\u0303 \u1100\u1161\u11a8 क्षि กำ",
    "日本語のテキスト 한국어 العربية עברית русский",
    "<|startoftext|> in <|endoftext|>the middle<|endoftext|>",
    "zero\u200bwidth \ufeffbom \ufffd \U0010ffff \x01\x02\x7f",
    "&amp; &lt;b&gt; caf\u00c3\u00a9",
    "supercalifragilisticexpialidocious " * 30,
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [(1, 0x7F), (1, 0x2FF), (1, 0x2FFF), (0x1F000, 0x1FFFF), (1, 0x10FFFF)]
    texts = []
    for _ in range(count):
        codes = (rng.randint(*rng.choice(ranges)) for _ in range(rng.randint(0, 24)))
        texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return texts


def write_folder(folder: Path, pad: str, **special: Any) -> Path:
    """A tokenizer folder as the published models have it: two files say two padding tokens for 2.x."""
    folder.mkdir(parents=True)
    vocab, merges = _standard_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def added(content: str) -> dict[str, object]:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    names = {"bos_token": added("<|startoftext|>"), "eos_token": added(SD1_PAD), "unk_token": added(SD1_PAD)}
    config = {**names, "pad_token": SD1_PAD, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": pad, **special}))
    return folder


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizers") / "sd1", SD1_PAD)


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizers") / "sd2", SD2_PAD)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(["a red apple", "a red house", "the house of an apple, that is red"] * 3, 560)


def reference(folder: Path) -> Callable[..., list[int]]:
    tokenizer = pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)

    def encode(text: str, **options: object) -> list[int]:
        ids: list[int] = tokenizer(text, **options).input_ids
        return ids

    return encode


# -- against transformers -----------------------------------------------------------------------------------------


def test_sd1_equals_transformers(sd1: Path) -> None:
    ours, theirs = Tokenizer.from_folder(sd1), reference(sd1)
    packaged = Tokenizer.clip()
    assert (ours.bos, ours.eos, ours.pad, len(ours)) == (49406, 49407, 49407, 49408)
    for text in TEXTS + random_texts(4000):
        expected = theirs(text, add_special_tokens=False)
        assert ours.encode(text) == expected, text
        assert packaged.encode(text) == expected, text


def test_sd2_equals_transformers(sd2: Path) -> None:
    ours, theirs = Tokenizer.from_folder(sd2), reference(sd2)
    assert ours.pad == 0
    for text in TEXTS + random_texts(2000):
        expected = theirs(text, add_special_tokens=False)
        # transformers takes "!" in a text for the padding token of these models.
        assert ours.encode(text, pad_in_text=True) == expected, text
        if "!" not in text:
            assert ours.encode(text) == expected, text
    assert ours.encode("hello!") == Tokenizer.clip().encode("hello!")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_equals_transformers(reference_sd1: Callable[..., list[int]], text: str) -> None:
    tokenizer = Tokenizer.clip()
    if "\0" in text:
        with pytest.raises(RequestError, match="NUL"):
            tokenizer.encode(text)
    else:
        assert tokenizer.encode(text) == reference_sd1(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def reference_sd1(sd1: Path) -> Callable[..., list[int]]:
    return reference(sd1)


def test_special_tokens_in_capitals(sd1: Path) -> None:
    """CLIP's own tokenizer lower-cases first, so these are special; transformers takes this one for text."""
    assert Tokenizer.from_folder(sd1).encode("<|ENDOFTEXT|> <|StartOfText|>") == [49407, 49406]
    assert reference(sd1)("<|ENDOFTEXT|>", add_special_tokens=False) != [49407]


@pytest.mark.parametrize("style", ["sd1", "sd2"])
@pytest.mark.parametrize("text", ["", "a cat", TEXTS[-1]])
def test_padded_line_equals_transformers(style: str, text: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(style)
    ours = Tokenizer.from_folder(folder)
    expected = reference(folder)(text, padding="max_length", truncation=True, max_length=77)
    assert ours.padded(ours.encode(text)) == expected


@pytest.mark.parametrize("style", ["sd1", "sd2"])
def test_folder_written_by_transformers(style: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Newer versions write tokenizer.json alone."""
    folder = request.getfixturevalue(style)
    tokenizer = pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").exists()
    ours, first = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(folder)
    assert (ours.bos, ours.eos, ours.pad, ours.max_length) == (first.bos, first.eos, first.pad, 77)
    assert [ours.encode(t) for t in TEXTS] == [first.encode(t) for t in TEXTS]


def test_added_tokens_equal_transformers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "added", SD1_PAD)
    (folder / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408, "<my-dog>": 49409}))
    ours = Tokenizer.from_folder(folder)
    tokenizer = pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(write_folder(tmp_path / "b", SD1_PAD))
    tokenizer.add_tokens(["<my-cat>", "<my-dog>"])
    for text in ["a <my-cat> and <my-dog>s, <MY-CAT>", "<my-cat><my-dog>"]:
        assert ours.encode(text) == tokenizer(text, add_special_tokens=False).input_ids
    assert ours.largest_id == 49409


# -- the standard vocabulary --------------------------------------------------------------------------------------


def test_published_ids() -> None:
    """Ids that are widely published for CLIP: the vocabulary is the very one, not just one of the same form."""
    tokenizer = Tokenizer.clip()
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("Hello, world!") == [3306, 267, 1002, 256]
    assert [tokenizer.token(i) for i in (0, 256, 49405, 49406)] == ["!", "!</w>", "jekyll</w>", "<|startoftext|>"]
    vocab, merges = _standard_vocabulary()
    assert len(merges) == 48894
    assert list(vocab.values()) == list(range(49408))
    text = "".join(f"{a} {b}\n" for a, b in merges)
    assert hashlib.sha256(text.encode()).hexdigest() == VOCABULARY_SHA256


VOCABULARY_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"


def test_pad_of_the_packaged_vocabulary() -> None:
    assert Tokenizer.clip().pad == 49407
    two = Tokenizer.clip(pad=0)
    assert two.padded(two.encode("a cat"))[:5] == [49406, 320, 2368, 49407, 0]
    assert len(two.padded(list(range(100)))) == 77


def test_decode() -> None:
    tokenizer = Tokenizer.clip()
    assert tokenizer.decode(tokenizer.encode("A  red Äpfel 😀, 12")) == "a red äpfel 😀, 1 2"
    assert tokenizer.decode([]) == ""
    with pytest.raises(IndexError, match="49408"):
        tokenizer.token(49408)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udfff"])
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="position"):
        Tokenizer.clip().encode(text)


# -- folders that are wrong ---------------------------------------------------------------------------------------


def test_padding_token_of_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", SD2_PAD)
    assert Tokenizer.from_folder(folder).pad == 0
    (folder / "special_tokens_map.json").unlink()
    assert Tokenizer.from_folder(folder).pad == 49407
    (folder / "tokenizer_config.json").unlink()
    plain = Tokenizer.from_folder(folder)
    assert (plain.pad, plain.max_length) == (49407, 77)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "not JSON"),
        ("vocab.json", "[]", "expected a JSON object"),
        ("vocab.json", '{"a": 0}', "not in the vocabulary"),
        ("vocab.json", '{"a": -1, "<|startoftext|>": 1, "<|endoftext|>": 2}', "not a whole number"),
        ("vocab.json", '{"a": "x", "<|startoftext|>": 1, "<|endoftext|>": 2}', "not a whole number"),
        ("vocab.json", '{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}', "do not fit together"),
        ("merges.txt", "one two three\n", "not a merge"),
        ("merges.txt", b"\xff\xfe", "cannot be read"),
        ("special_tokens_map.json", '{"pad_token": "no such token"}', "not in the vocabulary"),
        ("special_tokens_map.json", '{"pad_token": 5}', "not a text"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "not an integer"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "at least 3"),
        ("added_tokens.json", '{"<x>": 60000}', "not the next one free"),
    ],
)
def test_broken_folder(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    folder = write_folder(tmp_path / "broken", SD1_PAD)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no vocab\.json"):
        Tokenizer.from_folder(tmp_path)
    folder = write_folder(tmp_path / "half", SD1_PAD)
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        Tokenizer.from_folder(folder)


# -- JSON and training --------------------------------------------------------------------------------------------


def test_json_round_trip(trained: Tokenizer) -> None:
    for tokenizer in (trained, Tokenizer.clip(pad=0)):
        text = tokenizer.to_json()
        again = Tokenizer.from_json(text)
        assert again.to_json() == text
        assert (again.bos, again.eos, again.pad, again.max_length) == (
            tokenizer.bos,
            tokenizer.eos,
            tokenizer.pad,
            tokenizer.max_length,
        )
        assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]


def test_json_is_read_by_the_library(trained: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(trained.to_json())
    for text in ["", "a red apple", "word " * 200]:
        assert library.encode(text).ids == trained.padded(trained.encode(text))


GPT2 = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": None}}
SMALL = {
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2},
        "merges": [],
        "end_of_word_suffix": "</w>",
    }
}


@pytest.mark.parametrize(
    "data",
    [
        "x",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(GPT2),
        json.dumps({**SMALL, "model": {**SMALL["model"], "merges": [["a"]]}}),
        json.dumps({**SMALL, "model": {**SMALL["model"], "merges": [5]}}),
        json.dumps({**SMALL, "model": {**SMALL["model"], "merges": ["a b"]}}),
        json.dumps({**SMALL, "added_tokens": [{"content": 5}]}),
        json.dumps({**SMALL, "added_tokens": [{"content": "x", "id": 9}]}),
        json.dumps({**SMALL, "padding": {"strategy": "BatchLongest", "pad_token": "a"}}),
        json.dumps({**SMALL, "padding": {"strategy": {"Fixed": 1}, "pad_token": "a"}}),
        json.dumps({**SMALL, "padding": {"strategy": {"Fixed": 77}, "pad_token": "zz"}}),
    ],
)
def test_broken_json(data: str) -> None:
    assert Tokenizer.from_json(json.dumps(SMALL)).pad == 2
    with pytest.raises(CheckpointError):
        Tokenizer.from_json(data)


def test_training_is_deterministic() -> None:
    rng = random.Random(1)
    words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=8)) for _ in range(200)]  # many pairs are equally frequent
    assert len({Tokenizer.train(texts, 900).to_json() for _ in range(5)}) == 1


def test_training_finds_frequent_words(trained: Tokenizer) -> None:
    assert len(trained) <= 560
    assert (trained.bos, trained.eos) == (len(trained) - 2, len(trained) - 1)
    assert trained.pad == trained.eos
    assert [trained.token(i) for i in trained.encode("RED apple")] == ["red</w>", "apple</w>"]
    # What it has never seen is spelled in bytes.
    assert [trained.token(i) for i in trained.encode("火")] == ["ç", "ģ", "«</w>"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40).filter(lambda t: "\0" not in t))
def test_trained_vocabulary_loses_nothing(trained: Tokenizer, text: str) -> None:
    """No text gives an unknown token: its ids spell the same text as those of the standard vocabulary."""
    assert trained.decode(trained.encode(text)) == Tokenizer.clip().decode(Tokenizer.clip().encode(text))


def test_training_needs_room_for_bytes() -> None:
    with pytest.raises(RequestError, match="514"):
        Tokenizer.train(["a"], 513)
    assert len(Tokenizer.train(["a cat"], 514)) == 514
    assert len(Tokenizer.train([], 514)) == 514
