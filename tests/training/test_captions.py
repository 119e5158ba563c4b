from __future__ import annotations

from langevin.training.captions import CaptionConfig, caption
from langevin.training.randomness import generator

RECORD = {"caption": "red apple", "keywords": ["apple", "fruit", "red", "red apple"], "style": "icon"}


def captions(config: CaptionConfig, record: dict[str, object] = RECORD) -> list[str]:
    return [caption(record, config, generator(0, "test", i)) for i in range(300)]


def test_the_same_stream_gives_the_same_words() -> None:
    config = CaptionConfig(styles={"icon": ("black icon",)})
    assert captions(config) == captions(config)
    assert len(set(captions(config))) > 20


def test_a_style_that_is_always_said_is_always_said_and_another_by_its_share() -> None:
    styles = {"icon": ("black icon",)}
    assert all("black icon" in c for c in captions(CaptionConfig(styles=styles, always_styled=("icon",))))
    share = sum("black icon" in c for c in captions(CaptionConfig(styles=styles, style_share=0.5))) / 300
    assert 0.4 < share < 0.6
    assert not any("black icon" in c for c in captions(CaptionConfig(styles=styles, style_share=0)))


def test_every_caption_holds_the_name() -> None:
    assert all("red apple" in c for c in captions(CaptionConfig(styles={"icon": ("i",)}, keyword_share=1)))


def test_articles_fit_the_name() -> None:
    config = CaptionConfig(article_share=1, keyword_share=0)
    assert set(captions(config)) == {"a red apple"}
    assert set(captions(config, {"caption": "umbrella"})) == {"an umbrella"}


def test_keywords_do_not_repeat_the_name() -> None:
    config = CaptionConfig(article_share=0, keyword_share=1)
    for text in captions(config):
        name, *words = text.split(", ")
        assert name == "red apple" and 1 <= len(words) <= 3
        assert set(words) <= {"apple", "fruit", "red"} and len(set(words)) == len(words)
