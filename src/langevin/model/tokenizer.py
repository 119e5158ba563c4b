"""CLIP's byte-pair tokenizer: from a checkpoint folder, from a JSON text, the standard vocabulary, or newly trained.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4: lower-cased
byte-level byte-pair encoding, with `</w>` at the end of each word. The encoding itself is done by the `tokenizers`
library; what stands here is CLIP's pipeline for it, and where vocabularies come from.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from langevin.errors import CheckpointError, RequestError
from langevin.model.prompt import checked

START = "<|startoftext|>"
END = "<|endoftext|>"
_END_OF_WORD = "</w>"
_CLIP_MAX_LENGTH = 77
_SMALLEST_VOCABULARY = 2 * 256 + 2
"""256 bytes, each inside a word and at its end, and the two special tokens."""

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's split: English contractions, runs of letters, single digits, runs of anything else but space."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids. Ids of the start, end and padding tokens are fields; `encode` gives neither of them."""

    backend: tokenizers.Tokenizer
    bos: int
    eos: int
    pad: int
    max_length: int = _CLIP_MAX_LENGTH
    """Positions of the text encoder, start and end tokens included."""
    words: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Ids of added words that stand for several tokens, with the ids of all of them."""

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise CheckpointError(
                f"tokenizer: max_length {self.max_length} has no room for a word between the start and end tokens; "
                "at least 3 is needed"
            )

    def __len__(self) -> int:
        """Size of the vocabulary, special and added tokens included."""
        return int(self.backend.get_vocab_size())

    @property
    def largest_id(self) -> int:
        """The embedding of a text network must have one row more."""
        return max(self.backend.get_vocab().values())

    @property
    def room(self) -> int:
        """Tokens of text in one chunk: 75 for CLIP."""
        return self.max_length - 2

    # -- constructors ---------------------------------------------------------------------------------------------

    @classmethod
    def clip(cls, pad: int | None = None) -> Tokenizer:
        """The standard vocabulary of 49408 tokens, which ships with the package.

        pad: None pads with the end token (Stable Diffusion 1.x); Stable Diffusion 2.x pads with 0, which is "!".
        """
        return _standard() if pad is None else replace(_standard(), pad=pad)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From the files of a `tokenizer` folder: vocab.json + merges.txt, or else tokenizer.json.

        The padding token is the one of special_tokens_map.json, else of tokenizer_config.json, else the end token.
        Raises CheckpointError where a file is missing or malformed.
        """
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json", optional=True)
        special = {**config, **_read_json(folder / "special_tokens_map.json", optional=True)}
        max_length = config.get("model_max_length", _CLIP_MAX_LENGTH)
        if not isinstance(max_length, int) or isinstance(max_length, bool):
            raise CheckpointError(f"{folder}/tokenizer_config.json: model_max_length {max_length!r} is not an integer")
        if (folder / "vocab.json").exists():
            vocab = _read_json(folder / "vocab.json")
            merges = _read_merges(folder / "merges.txt")
            added = _read_json(folder / "added_tokens.json", optional=True)
        elif (folder / "tokenizer.json").exists():
            vocab, merges, added = _parts_of(_read_json(folder / "tokenizer.json"), str(folder / "tokenizer.json"))
        else:
            raise CheckpointError(f"{folder}: no vocab.json and no tokenizer.json; a CLIP tokenizer folder has one")
        end = _token_text(special, "eos_token", END)
        return _assemble(
            vocab,
            merges,
            added,
            start=_token_text(special, "bos_token", START),
            end=end,
            pad=_token_text(special, "pad_token", end),
            # Libraries write 10^30 where a tokenizer states no limit of its own.
            max_length=max_length if max_length < 10**6 else _CLIP_MAX_LENGTH,
            source=str(folder),
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """From the text of `to_json`, or of a CLIP `tokenizer.json`. Raises CheckpointError where it is malformed."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"tokenizer: not JSON: {error}") from error
        vocab, merges, added = _parts_of(data, "tokenizer")
        match data.get("padding"):
            case {"strategy": {"Fixed": int(max_length)}, "pad_token": str(pad)}:
                return _assemble(vocab, merges, added, pad=pad, max_length=max_length)
            case None:
                return _assemble(vocab, merges, added)
            case other:
                raise CheckpointError(f"tokenizer: padding {other!r} does not name a fixed length and a token")

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int, max_length: int = _CLIP_MAX_LENGTH) -> Tokenizer:
        """A new vocabulary of at most `vocabulary_size` tokens, learned from `texts`. Pads with the end token.

        Ids stand as in CLIP's: 256 bytes, the same at a word's end, the merges in the order learned, start, end. So
        every text can be encoded, whether its characters were seen in training or not. Fewer tokens than asked for
        come out only where the texts hold no more pairs to merge.
        """
        if vocabulary_size < _SMALLEST_VOCABULARY:
            raise RequestError(
                f"vocabulary size {vocabulary_size} is too small: every byte needs two tokens, and two are special; "
                f"at least {_SMALLEST_VOCABULARY}"
            )
        learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
        _set_pipeline(learner)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            initial_alphabet=_alphabet(),
            # Given first so that they have fixed ids: equally frequent pairs are learned in the order of their ids, and
            # ids given as words come up would differ from run to run.
            special_tokens=[c + _END_OF_WORD for c in _alphabet()],
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        learned = json.loads(learner.to_str())["model"]["merges"]
        merges = [(a, b) for a, b in learned[: vocabulary_size - _SMALLEST_VOCABULARY]]
        return _assemble(_vocabulary_of(merges), merges, max_length=max_length)

    def with_word(self, word: str, count: int = 1) -> Tokenizer:
        """The same with one more word that stands for `count` new tokens, which have the next ids that are free.

        The word is found in a text where no letter or digit touches it, in capitals too. Raises RequestError for a word
        that is known already, is empty or holds white space.
        """
        word = checked(word)
        if not word or word != "".join(word.split()):
            raise RequestError(f"the word {word!r} of an embedding: give one without white space")
        if count < 1:
            raise RequestError(f"a word of {count} tokens: give at least 1")
        if len(self.encode(word)) == 1:
            raise RequestError(f"the word {word!r} of an embedding is a token already: choose another, as <{word}>")
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        first = len(self)
        ids = tuple(range(first, first + count))
        for i, token_id in enumerate(ids):
            text = word if i == 0 else f"{word}_{i}"
            backend.add_tokens([AddedToken(text, single_word=True)])
            if backend.token_to_id(text) != token_id:  # a piece of words has just this spelling
                raise RequestError(f"the word {text!r} of an embedding is a token already: choose another, as <{word}>")
        return replace(self, backend=backend, words={**self.words, ids[0]: ids} if count > 1 else self.words)

    # -- use ------------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, pad_in_text: bool = False) -> list[int]:
        """Token ids of `text`, of any length, without start, end and padding.

        pad_in_text: the padding token's text, where it occurs in `text`, becomes the padding token, as it does in
        transformers. It matters for Stable Diffusion 2.x, which pads with "!": the network was trained with "!" as a
        word of its own, so this is off unless another program's picture is wanted.
        Raises RequestError where the text holds a NUL or half of a surrogate pair.
        """
        checked(text)
        parts = text.split(self.token(self.pad)) if pad_in_text and self.pad not in (self.bos, self.eos) else [text]
        ids: list[int] = []
        for place, part in enumerate(parts):
            ids.extend([self.pad] if place else [])
            for i in self.backend.encode(part, add_special_tokens=False).ids:
                ids.extend(self.words.get(i, (i,)))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """About the text that `ids` came from: lower case, one space after each word."""
        byte_of = _byte_of()
        words = "".join(self.token(i).replace(_END_OF_WORD, " ") for i in ids)
        spelled = b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in words)
        return spelled.decode("utf-8", errors="replace").strip()

    def token(self, token_id: int) -> str:
        """The token as it is written in the vocabulary: bytes as CLIP's printable characters, `</w>` at word ends."""
        token = self.backend.id_to_token(token_id)
        if token is None:
            raise IndexError(f"token id {token_id} is not in the vocabulary of {len(self)}")
        return str(token)

    def padded(self, ids: Sequence[int]) -> list[int]:
        """`ids` cut to the room, between start and end token, padded: exactly `max_length` ids."""
        line = [self.bos, *ids[: self.room], self.eos]
        return line + [self.pad] * (self.max_length - len(line))

    def to_json(self) -> str:
        """The whole tokenizer as JSON. The `tokenizers` library reads it too, with the same padding and length.

        Raises CheckpointError where words stand for several tokens, which JSON has no place for.
        """
        if self.words:
            raise CheckpointError(
                f"tokenizer: {self.token(next(iter(self.words)))!r} stands for several tokens, which no tokenizer file "
                "can say: keep its embedding as a file of its own"
            )
        data = json.loads(self.backend.to_str())
        data["padding"] = {
            "strategy": {"Fixed": self.max_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": self.pad,
            "pad_type_id": 0,
            "pad_token": self.token(self.pad),
        }
        data["truncation"] = {
            "direction": "Right",
            "max_length": self.max_length,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        return json.dumps(data, ensure_ascii=False)


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def _alphabet() -> list[str]:
    """The 256 bytes as printable characters in CLIP's order: printable bytes, then the others, from U+0100 up."""
    return [chr(b) for b in _PRINTABLE] + [chr(0x100 + i) for i in range(256 - len(_PRINTABLE))]


@cache
def _byte_of() -> dict[str, int]:
    others = [b for b in range(256) if b not in _PRINTABLE]
    return dict(zip(_alphabet(), [*_PRINTABLE, *others], strict=True))


def _vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    alphabet = _alphabet()
    tokens = alphabet + [c + _END_OF_WORD for c in alphabet] + [a + b for a, b in merges] + [START, END]
    # Two merges may spell the same token: it keeps its first id, and ids stay without a gap.
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


@cache
def _standard_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    text = gzip.decompress((files("langevin") / "data" / "clip_vocabulary.txt.gz").read_bytes()).decode("utf-8")
    merges = [_pair(line, "clip_vocabulary") for line in text.splitlines()]
    return _vocabulary_of(merges), merges


@cache
def _standard() -> Tokenizer:
    return _assemble(*_standard_vocabulary())


def _assemble(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Mapping[str, int] | None = None,
    *,
    start: str = START,
    end: str = END,
    pad: str | None = None,
    max_length: int = _CLIP_MAX_LENGTH,
    source: str = "tokenizer",
) -> Tokenizer:
    """CLIP's pipeline around a vocabulary. `added`: further tokens, matched in the text before it is split."""
    pad = end if pad is None else pad
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 2**31:
            raise CheckpointError(f"{source}: token {token!r} has id {i!r}, not a whole number from 0")
    for name, token in (("start", start), ("end", end), ("padding", pad)):
        if token not in vocab and token not in (added or {}):
            raise CheckpointError(f"{source}: the {name} token {token!r} is not in the vocabulary")
    try:
        backend = tokenizers.Tokenizer(
            models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix=_END_OF_WORD, unk_token=end)
        )
    except Exception as error:  # the library raises bare Exception
        said = str(error).split("\n")[0]
        raise CheckpointError(f"{source}: vocabulary and merges do not fit together: {said}") from error
    _set_pipeline(backend)
    for token, i in sorted((added or {}).items(), key=lambda item: item[1]):
        backend.add_tokens([AddedToken(token)])
        if backend.token_to_id(token) != i:
            raise CheckpointError(f"{source}: the added token {token!r} has id {i}, not the next one free")
    # Matched in the normalised text, as in CLIP's own tokenizer: in capitals they are special too.
    backend.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in (start, end)])
    ids = backend.get_vocab()
    backend.post_processor = processors.RobertaProcessing((end, ids[end]), (start, ids[start]), False, False)
    return Tokenizer(backend, ids[start], ids[end], ids[pad], max_length)


def _set_pipeline(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _parts_of(data: Any, source: str) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges and added tokens of a `tokenizer.json`, once it is known to be of CLIP's kind."""
    match data:
        case {"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": dict(vocab), "merges": list(lines)}}:
            merges = [_pair(line, source) for line in lines]
        case _:
            raise CheckpointError(f"{source}: not a CLIP tokenizer (byte pairs with </w> at the end of a word)")
    added = {}
    for token in data.get("added_tokens") or []:
        match token:
            case {"content": str(text), "id": int(i)}:
                added[text] = i
            case other:
                raise CheckpointError(f"{source}: {str(other)[:60]} is not an added token")
    return vocab, merges, {text: i for text, i in added.items() if text not in vocab}


def _token_text(special: Mapping[str, Any], name: str, default: str) -> str:
    """Special tokens are given as a text or as an object with `content`."""
    value = special.get(name)
    if value is None:
        return default
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise CheckpointError(f"tokenizer: {name} {value!r} is not a text")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")
    return [_pair(line, path) for line in lines if line.strip() and not line.startswith("#version")]


def _pair(line: object, source: object) -> tuple[str, str]:
    match line.strip("\r").split(" ") if isinstance(line, str) else line:
        case [str(a), str(b)]:
            return a, b
    raise CheckpointError(f"{source}: {str(line)[:60]!r} is not a merge of two tokens")
