"""CLIP's byte-pair tokenizer: from a checkpoint folder, from a JSON text, the standard vocabulary, or newly trained.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4: lower-cased
byte-level byte-pair encoding, with `</w>` at the end of each word. The encoding itself is done by the `tokenizers`
library; what stands here is CLIP's pipeline for it, and where vocabularies come from.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from langevin.errors import CheckpointError, RequestError

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
    def room(self) -> int:
        """Tokens of text in one chunk: 75 for CLIP."""
        return self.max_length - 2

    # -- constructors ---------------------------------------------------------------------------------------------

    @classmethod
    def clip(cls, pad: int | None = None) -> Tokenizer:
        """The standard vocabulary of 49408 tokens, which ships with the package.

        pad: None pads with the end token (Stable Diffusion 1.x); Stable Diffusion 2.x pads with 0, which is "!".
        """
        vocab, merges = _standard_vocabulary()
        tokenizer = _assemble(vocab, merges)
        return tokenizer if pad is None else cls(tokenizer.backend, tokenizer.bos, tokenizer.eos, pad)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From the files of a `tokenizer` folder: vocab.json + merges.txt, or else tokenizer.json.

        The padding token is the one of special_tokens_map.json, else of tokenizer_config.json, else the end token.
        Raises CheckpointError where a file is missing or malformed.
        """
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json", optional=True)
        special = {**config, **_read_json(folder / "special_tokens_map.json", optional=True)}
        start, end = _token_text(special, "bos_token", START), _token_text(special, "eos_token", END)
        max_length = config.get("model_max_length", _CLIP_MAX_LENGTH)
        if not isinstance(max_length, int) or isinstance(max_length, bool):
            raise CheckpointError(f"{folder}/tokenizer_config.json: model_max_length {max_length!r} is not an integer")
        # Libraries write 10^30 where a tokenizer states no limit of its own.
        max_length = max_length if max_length < 10**6 else _CLIP_MAX_LENGTH
        if (folder / "vocab.json").exists():
            vocab = _read_json(folder / "vocab.json")
            merges = _read_merges(folder / "merges.txt")
            try:
                tokenizer = _assemble(vocab, merges, start, end, max_length)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(f"{folder}: vocab.json and merges.txt do not fit together: {error}") from error
        elif (folder / "tokenizer.json").exists():
            tokenizer = _from_backend(_backend_of(_read_text(folder / "tokenizer.json")), start, end, max_length)
        else:
            raise CheckpointError(f"{folder}: no vocab.json and no tokenizer.json; a CLIP tokenizer folder has one")
        pad = _id(tokenizer.backend, _token_text(special, "pad_token", end), "padding")
        return cls(tokenizer.backend, tokenizer.bos, tokenizer.eos, pad, max_length)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """From the text of `to_json`, or of any `tokenizer.json` with CLIP's special tokens.

        Raises CheckpointError where it is malformed.
        """
        try:
            data = json.loads(text)
            padding = data.get("padding") or {}
            strategy = padding.get("strategy") or {}
            max_length = int(strategy.get("Fixed", _CLIP_MAX_LENGTH)) if isinstance(strategy, dict) else 77
            pad = padding.get("pad_id")
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"tokenizer: not the JSON of a tokenizer: {error}") from error
        tokenizer = _from_backend(_backend_of(text), START, END, max_length)
        pad = tokenizer.eos if pad is None else int(pad)
        return cls(tokenizer.backend, tokenizer.bos, tokenizer.eos, pad, max_length)

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

    # -- use ------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, of any length, without start, end and padding.

        Raises RequestError where the text holds a NUL or half of a surrogate pair.
        """
        return list(self.backend.encode(checked(text), add_special_tokens=False).ids)

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
        """The whole tokenizer as JSON. The `tokenizers` library reads it too, with the same padding and length."""
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


def checked(text: str, name: str = "prompt") -> str:
    """`text` itself, if it can be encoded as UTF-8 and holds no NUL; else RequestError that names where."""
    for index, character in enumerate(text):
        if character == "\0":
            raise RequestError(f"{name}: NUL character at position {index}; remove it")
        if "\ud800" <= character <= "\udfff":
            raise RequestError(
                f"{name}: half of a surrogate pair (U+{ord(character):04X}) at position {index}; "
                "the text was not decoded correctly, pass it as UTF-8"
            )
    return text


def _alphabet() -> list[str]:
    """The 256 bytes as printable characters, in CLIP's order: printable bytes first, then the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


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


def _assemble(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    start: str = START,
    end: str = END,
    max_length: int = _CLIP_MAX_LENGTH,
) -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix=_END_OF_WORD, unk_token=end)
    )
    _set_pipeline(backend)
    return _from_backend(backend, start, end, max_length)


def _set_pipeline(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            # The regex above has split already; this one only turns bytes into printable characters.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _from_backend(backend: tokenizers.Tokenizer, start: str, end: str, max_length: int) -> Tokenizer:
    bos, eos = _id(backend, start, "start"), _id(backend, end, "end")
    backend.add_special_tokens([AddedToken(start, special=True), AddedToken(end, special=True)])
    backend.post_processor = processors.RobertaProcessing((end, eos), (start, bos), False, False)
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, bos, eos, eos, max_length)


def _backend_of(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"tokenizer: not the JSON of a tokenizer: {error}") from error


def _id(backend: tokenizers.Tokenizer, token: str, name: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise CheckpointError(f"tokenizer: the {name} token {token!r} is not in the vocabulary")
    return int(found)


def _token_text(special: Mapping[str, Any], name: str, default: str) -> str:
    """Special tokens are given as a text or as an object with `content`."""
    value = special.get(name) or default
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
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")
    return [_pair(line, path) for line in lines if line.strip() and not line.startswith("#version")]


def _pair(line: str, source: object) -> tuple[str, str]:
    match line.strip("\r").split(" "):
        case [a, b]:
            return a, b
    raise CheckpointError(f"{source}: {line[:60]!r} is not a merge of two tokens")
