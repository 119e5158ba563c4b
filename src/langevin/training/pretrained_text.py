"""A text encoder that is not trained here but taken from elsewhere, as a recipe names it."""

from __future__ import annotations

from pydantic import Field

from langevin.checkpoints.encoders import fetch_encoder
from langevin.errors import RequestError
from langevin.model.text_transformers import EncoderKind, TransformersEncoder, open_encoder
from langevin.training.config import Config


class PretrainedText(Config):
    """T5, BERT or CLIP from a folder or the Hub, frozen. Needs the extra `text`."""

    kind: EncoderKind
    path: str = Field(min_length=1)
    """A folder in the format of the transformers library, or a Hub id (owner/name)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; None is `main`. The finished model names the commit."""
    length: int = Field(77, ge=4, le=512)
    """Tokens that every caption is cut or padded to."""


def open_pretrained(config: PretrainedText, width: int, device: str = "cpu") -> TransformersEncoder:
    """The encoder, in float32. Raises CheckpointError where it cannot be opened, RequestError unless its states have
    `width` channels."""
    folder, commit = fetch_encoder(config.path, config.revision)
    encoder = open_encoder(
        folder,
        config.kind,
        config.length,
        source=config.path,
        revision=commit,
        device=device,
    )
    if encoder.width != width:
        raise RequestError(
            f"text_encoder {config.path} gives states of {encoder.width} channels, the U-Net takes {width}: set "
            f"diffusion.network.context_channels={encoder.width}"
        )
    return encoder
