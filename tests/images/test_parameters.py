"""The text that other programs read: what we write is what their reader finds, whatever the prompt holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langevin.images.parameters import parameters_text, parse_parameters

FIELDS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": "7", "Seed": 1, "Size": "512x768", "Nothing": None}


def test_the_text_is_the_web_ui_s() -> None:
    text = parameters_text("a cat\nin a hat", "dog", {**FIELDS, "Model": "a, b: c"})
    assert text == (
        "a cat\nin a hat\nNegative prompt: dog\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model: "a, b: c"'
    )


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert parameters_text("a", "", FIELDS).splitlines()[1].startswith("Steps: 20")


def test_too_few_fields_would_not_be_known_for_fields() -> None:
    with pytest.raises(ValueError, match="2 fields"):
        parameters_text("a", "", {"Steps": 1, "Seed": 2})


def test_reading_the_web_ui_s_own_text() -> None:
    fields = 'Steps: 4, Sampler: DPM++ 2M, CFG scale: 7.5, Notes: "a, \\"b\\""'
    text = f"a (cat:1.2), hat\nNegative prompt: dog,\nbird\n{fields}"
    prompt, negative, found = parse_parameters(text)
    assert (prompt, negative) == ("a (cat:1.2), hat", "dog,\nbird")
    assert found == {"Steps": "4", "Sampler": "DPM++ 2M", "CFG scale": "7.5", "Notes": 'a, "b"'}


def test_a_text_without_fields_is_a_prompt() -> None:
    assert parse_parameters("just words: yes") == ("just words: yes", "", {})


_LINES = st.lists(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
    | st.sampled_from(
        [
            "Negative prompt: x",
            "  Negative prompt:",
            "Steps: 1, Sampler: x, CFG scale: 1",
            '"',
            "\\",
            ",:",
            "\r",
            "\u2028",
        ]
    ),
    max_size=4,
).map("\n".join)


def spaces(text: str) -> str:
    """The prompt as the reader sees it: lines without the white space at their ends, and none around the whole."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.strip() for line in lines).strip()


@settings(max_examples=500, deadline=None)
@given(_LINES, _LINES, st.text(st.characters(blacklist_categories=["Cs"]), max_size=12))
@example("Negative prompt: x", "", "m")
@example("a\nSteps: 1, Sampler: x, CFG scale: 1", "\nNegative prompt: y", 'x", Seed: 3')
def test_no_prompt_forges_a_field_or_the_negative_prompt(prompt: str, negative: str, model: str) -> None:
    found = parse_parameters(parameters_text(prompt, negative, {**FIELDS, "Model": model}))
    assert {k: found.fields[k] for k in ("Steps", "Sampler", "CFG scale", "Seed", "Size")} == {
        "Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "1", "Size": "512x768",
    }  # fmt: skip
    assert set(found.fields) <= {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model"}
    marked = re.compile(r"^(\s*Negative prompt) :", re.M)
    assert marked.sub(r"\1:", spaces(found.prompt)) == marked.sub(r"\1:", spaces(prompt))
    assert marked.sub(r"\1:", spaces(found.negative)) == marked.sub(r"\1:", spaces(negative))
    if "\0" not in model and model.strip():
        assert found.fields["Model"] == model
