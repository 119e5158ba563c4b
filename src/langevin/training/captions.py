"""Captions for a record: rephrased each time it is seen, the same again when a run is repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from langevin.training.config import Config


class CaptionConfig(Config):
    """How a record's name, keywords and style become a caption."""

    styles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Words for each value of the record's `style`; one of them is chosen. A style that is not named here is never
    said."""
    always_styled: tuple[str, ...] = ()
    """Styles that are said in every caption, so that a prompt without a style does not mean them."""
    style_share: float = Field(0.5, ge=0, le=1)
    """How often a style is said otherwise."""
    keyword_share: float = Field(0.3, ge=0, le=1)
    """How often some of the record's keywords follow the name."""
    article_share: float = Field(0.4, ge=0, le=1)
    """How often the name gets "a" or "an"."""
    colour_share: float = Field(0.0, ge=0, le=1)
    """How often the record's `colour` stands before the name; `data.colours` measures it."""
    shuffle_tags: float = Field(0.0, ge=0, le=1)
    """How often the parts of the caption between commas are put in another order."""
    keep_tags: int = Field(0, ge=0)
    """How many parts at the beginning stay where they are then."""


def caption(record: Mapping[str, Any], config: CaptionConfig, generator: torch.Generator) -> str:
    """One caption for `record` (fields `caption`, and if it has them `captions`, `keywords`, `style`, `colour` and
    `phrase`).

    Of several captions one is chosen, each as often as the others. Tags are shuffled before anything is added. Before a
    `phrase`, which has its article already, nothing is put.
    """

    def chance(share: float) -> bool:
        return float(torch.rand((), generator=generator)) < share

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    texts = record.get("captions") or [record["caption"]]
    text = str(texts[below(len(texts))] if len(texts) > 1 else texts[0])
    if config.shuffle_tags and chance(config.shuffle_tags):
        tags = [tag for part in text.split(",") if (tag := part.strip())]
        kept, rest = tags[: config.keep_tags], tags[config.keep_tags :]
        text = ", ".join([*kept, *(rest[i] for i in torch.randperm(len(rest), generator=generator).tolist())])
    if config.colour_share and record.get("colour") and chance(config.colour_share):
        text = f"{record['colour']} {text}"
    if not record.get("phrase") and chance(config.article_share):
        text = f"{'an' if text[:1].lower() in 'aeiou' else 'a'} {text}"
    keywords = [str(k) for k in record.get("keywords") or () if k not in texts]
    if keywords and chance(config.keyword_share):
        order = torch.randperm(len(keywords), generator=generator).tolist()
        text = ", ".join([text, *(keywords[i] for i in order[: 1 + below(3)])])
    style = str(record.get("style"))
    words = config.styles.get(style, ())
    if words and (style in config.always_styled or chance(config.style_share)):
        word = words[below(len(words))]
        text = (f"{text}, {word}", f"{text}, {word} style", f"{text} in {word} style", f"{word} {text}")[below(4)]
    return text
