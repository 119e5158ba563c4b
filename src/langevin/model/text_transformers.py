"""Text encoders of the `transformers` library: T5, BERT and CLIP from a folder, frozen, beside our own CLIP tower.

The library is imported when such an encoder is opened, and only then: it is the extra `text`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.model.chunks import Chunk, Long
from langevin.model.precision import float32_copy
from langevin.model.prompt import ParsedPrompt, Weighting, parse, shown
from langevin.model.text import EncodedText

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WEIGHTS = "model.safetensors"


class EncoderKind(StrEnum):
    """The architectures that are read."""

    T5 = "t5"
    """The encoder of T5 (Raffel et al. 2020), as in Imagen."""
    BERT = "bert"
    """BERT (Devlin et al. 2019), as in the text-to-image model of Rombach et al. 2022."""
    CLIP = "clip"
    """CLIP's text tower (Radford et al. 2021), as in Stable Diffusion."""


class _Traits(NamedTuple):
    model: str
    """The library's class."""
    types: tuple[str, ...]
    """What `model_type` in config.json may be."""
    masked: bool
    """Padding is hidden from the encoder's attention, and its states are set to zero."""
    positions: str | None
    """The field of config.json that bounds the length; None where positions are relative."""
    options: Mapping[str, Any]


_TRAITS: Mapping[EncoderKind, _Traits] = {
    EncoderKind.T5: _Traits("T5EncoderModel", ("t5",), True, None, {}),
    EncoderKind.BERT: _Traits("BertModel", ("bert",), True, "max_position_embeddings", {"add_pooling_layer": False}),
    EncoderKind.CLIP: _Traits("CLIPTextModel", ("clip_text_model",), False, "max_position_embeddings", {}),
}


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """Which encoder a model was trained with: what its file says in place of the encoder's weights."""

    kind: EncoderKind
    source: str
    """The folder, as it was given, or the Hub id."""
    revision: str | None = None
    """The commit on the Hub."""
    length: int
    """Tokens that every text is cut or padded to."""
    files: Mapping[str, str]
    """SHA-256 of config.json, of the tokenizer's files and of every weight file, by name."""


class TransformersEncoder:
    """A frozen encoder with its tokenizer; what `langevin.model.text.TextEncoder` is for our own tower.

    A text is one window of `record.length` tokens: longer ones are cut, shorter ones padded. For T5 and BERT the
    encoder does not see the padding, and the states there are zero, so that they say nothing: a key of zeros has a
    logit of zero and adds nothing to what is attended to. CLIP sees its padding, as Stable Diffusion does.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, record: EncoderRecord) -> None:
        """network: gives `last_hidden_state`. tokenizer: a fast one of the library."""
        self.network = network.eval().requires_grad_(False)
        self.record = record
        self.calls = 0
        """How often the network was run."""
        self._backend = tokenizer.backend_tokenizer  # its own settings are left out: they would cut at other lengths
        self._backend.no_truncation()
        self._backend.no_padding()
        self._pad = tokenizer.pad_token_id
        self._room = record.length - self._backend.num_special_tokens_to_add(False)

    @property
    def width(self) -> int:
        """Channels of the states."""
        config: Any = self.network.config
        return int(config.hidden_size)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str | ParsedPrompt],
        *,
        clip_skip: int = 0,
        weighting: Weighting | str = Weighting.A1111,
        long: Long | str = Long.CHUNK,
    ) -> EncodedText:
        """The context of each prompt, B L D, L = `record.length`.

        Weights and BREAK are taken out of the prompt and have no effect, which a notice says; so does one where a
        prompt is cut: there are no further windows, so CHUNK cuts as TRUNCATE does. Raises RequestError for a
        clip_skip, for no prompts, and for a long prompt with ERROR; NotFiniteError where the network gives NaN.
        """
        if not prompts:
            raise RequestError("no prompt was given; the empty prompt is ''")
        if clip_skip:
            raise RequestError(f"clip_skip {clip_skip}: this model's text encoder is {self._name}: leave it 0")
        long = Long.of(long)
        notices: list[str] = []
        chunks: list[Chunk] = []
        for prompt in prompts:
            parsed = parse(prompt, Weighting.of(weighting)) if isinstance(prompt, str) else prompt
            pieces = [piece for section in parsed.sections for piece in section]
            text = " ".join("".join(piece.text for piece in section) for section in parsed.sections).strip()
            if len(parsed.sections) > 1 or any(piece.weight != 1 for piece in pieces):
                notices.append(f"prompt {shown(text)}: weights and BREAK have no effect with {self._name}")
            chunk, rest = self._chunk(text)
            if rest:
                if long is Long.ERROR:
                    raise RequestError(
                        f"prompt {shown(text)} has more than the {self._room} tokens that fit: shorten it"
                    )
                notices.append(f"prompt {shown(text)}: {self._room} tokens fit; cut off: {shown(rest, 200)}")
            chunks.append(chunk)
        known = {chunk: self._run(chunk) for chunk in dict.fromkeys(chunks)}
        context = torch.cat([known[chunk] for chunk in chunks])
        return EncodedText(context, tuple((chunk,) for chunk in chunks), tuple(dict.fromkeys(notices)))

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> Tensor:
        """Text states B L D of captions taken literally, cut where they are long; each is encoded by itself."""
        return torch.cat([self._run(self._chunk(caption)[0]) for caption in captions])

    def float32(self) -> TransformersEncoder:
        """The same with float32 weights."""
        wide = copy.copy(self)
        wide.network = float32_copy(self.network)
        return wide

    @property
    def _name(self) -> str:
        return self.record.kind.name

    def _chunk(self, text: str) -> tuple[Chunk, str]:
        """The window of a text, and what did not fit."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        rest = self._backend.decode(encoded.ids[self._room :]) if len(encoded.ids) > self._room else ""
        count = min(len(encoded.ids), self._room)
        encoded.truncate(self._room)
        ids = self._backend.post_process(encoded, add_special_tokens=True).ids
        padding = self.record.length - len(ids)
        return Chunk((*ids, *[self._pad] * padding), (1.0,) * self.record.length, count), rest

    def _run(self, chunk: Chunk) -> Tensor:
        self.calls += 1
        device = next(self.network.parameters()).device
        ids = torch.tensor([chunk.ids], device=device)  # 1 L
        special = self.record.length - self._room
        with torch.autocast(device.type, enabled=False):
            if not _TRAITS[self.record.kind].masked:
                states: Tensor = self.network(input_ids=ids).last_hidden_state
            else:
                real = torch.arange(self.record.length, device=device)[None] < chunk.length + special
                states = self.network(input_ids=ids, attention_mask=real.long()).last_hidden_state
                states = states * real[..., None]
        if not states.isfinite().all():
            name = str(states.dtype).removeprefix("torch.")
            raise NotFiniteError(f"the text encoder {self._name} gave NaN or infinity in {name}")
        return states


def open_encoder(
    folder: Path,
    kind: EncoderKind,
    length: int,
    *,
    source: str | None = None,
    revision: str | None = None,
    expected: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TransformersEncoder:
    """The encoder in a folder of the library's format: config.json, tokenizer.json, safetensors weights.

    source, revision: what the record is to say; the folder itself if not given. expected: the files' SHA-256 as they
    have to be. Nothing is unpickled and no program in the folder is run. Raises CheckpointError, in one line, where the
    library or a file is missing, the folder holds something else, or a hash differs.
    """
    transformers = _library()
    traits = _TRAITS[kind]
    config = _config(folder)
    found = str(config.get("model_type"))
    if found not in traits.types and not (kind is EncoderKind.CLIP and found == "clip"):
        raise CheckpointError(f"{folder} holds a model of type {found!r}, not {kind}: give its kind, or another folder")
    files = _hashes(folder)
    for name, digest in (expected or {}).items():
        if files.get(name) != digest:
            state = f"has SHA-256 {files[name][:16]}..." if name in files else "is missing"
            raise CheckpointError(
                f"{folder} is not the text encoder that the model was trained with: its {name} {state}, "
                f"expected {digest[:16]}...; give the folder that it was"
            )
    try:
        with quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            network, report = getattr(transformers, traits.model).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                **traits.options,
            )
    except Exception as error:  # of many kinds, and not the library's own
        first = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise CheckpointError(f"{folder} cannot be read as {kind.name}: {first}") from None
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder}: {len(missing)} of the encoder's weights are missing, the first {missing[0]}")
    if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer is not a fast one with a padding token")
    if len(tokenizer) > (rows := network.get_input_embeddings().num_embeddings):
        raise CheckpointError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the encoder {rows} embeddings")
    if traits.positions is not None and length > (most := int(getattr(network.config, traits.positions))):
        raise CheckpointError(f"{folder}: a length of {length} tokens, {kind.name} has {most} positions here")
    record = EncoderRecord(kind=kind, source=source or str(folder), revision=revision, length=length, files=files)
    return TransformersEncoder(network.to(device), tokenizer, record)


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            "this text encoder needs the library transformers, which is missing: pip install 'langevin[text]'"
        ) from None
    return transformers


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give the text encoder's, with config.json and tokenizer.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is read. CheckpointError where one that is needed is not there."""
    names = [n for n in _TOKENIZER_FILES if (folder / n).is_file()]
    if _TOKENIZER_FILES[0] not in names:
        raise CheckpointError(f"{folder}: no tokenizer.json: only fast tokenizers are read")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    weights = [_WEIGHTS] if (folder / _WEIGHTS).is_file() else shards
    if not weights:
        raise CheckpointError(f"{folder}: no {_WEIGHTS}: weights are read from safetensors files alone")
    hashes = {}
    for name in ("config.json", *names, *weights):
        with open(folder / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without the library's progress bars and its report of weights that this encoder does not use."""
    logging = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
