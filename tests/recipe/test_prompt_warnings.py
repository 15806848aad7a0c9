"""What `check` says of prompts."""

from __future__ import annotations

from typing import Any

import pytest

from sdbuild.recipe.models import Recipe
from sdbuild.recipe.prompt_warnings import foreign


def recipe(trigger: str = "", method: Any = None, **sample: Any) -> Recipe:
    said = {
        "name": "cat",
        "base": {"model": "emoji-64"},
        "datasets": [{"path": "datasets/cat", "trigger": trigger}],
        "method": method or {"kind": "lora"},
        "sample": sample,
    }
    return Recipe.model_validate(said)


@pytest.mark.parametrize(
    ("prompt", "what", "instead"),
    [
        (
            "a cat --n dog --w 512 --h 512",
            "--n, --w, --h are read as plain words",
            "sample.negative, images.resolution",
        ),
        ("a cat --d 3 --s 20 --l 7.5", "--d, --s, --l", "sample.seeds, sample.steps, sample.guidance"),
        ("a cat --ar 16:9", "--ar is read as plain words", "images.resolution"),
        ("a <lora:other:0.8> cat", "<lora:other:0.8>", "sample.adapters"),
        ("a {red|blue} cat", "{red|blue}", "a prompt for each choice"),
        ("a {{cat}}", "{{cat}}", "(word:1.1)"),
        ("a __colour__ cat", "__colour__", "a prompt for each word"),
        ("a cat BREAK a dog", "BREAK is read as a plain word", "prompts of any length"),
        ("a cat AND a dog", "AND is read as a plain word", "a prompt for each part"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5]", "it counts in all steps"),
        ("a [cat:8]", "[cat:8]", "it counts in all steps"),
        ("a [cat|dog]", "[cat|dog]", "a prompt for each choice"),
        ("embedding:bad-hands", "embedding:bad-hands", "textual_inversion"),
        ("a cat++", "cat++", "(word:1.1)"),
    ],
)
def test_syntax_of_other_programs_is_told(prompt: str, what: str, instead: str) -> None:
    (said,) = foreign(prompt)
    assert what in said
    assert instead in said
    assert f"sample.prompts[0] {prompt!r}: {said}" in list(recipe(prompts=[prompt]).warnings())
    assert f"sample.negative {prompt!r}: {said}" in list(recipe(prompts=["x"], negative=prompt).warnings())


def test_prompts_of_ours_are_not() -> None:
    for prompt in (
        *("(a cat:1.2), [dog], ((x))", r"saber \(fate\)", "BLACK AND WHITE", "a well-known cat -- in C++, 3:2"),
        *("time 10:30", "rock and roll", "<toy> in a box", "snake_case__name", "breakfast"),
    ):
        assert not list(foreign(prompt)), prompt


def test_prompts_without_the_trigger_are_told() -> None:
    (said,) = recipe("sks cat", prompts=["a dog", "a house"]).warnings()
    assert "no prompt of sample.prompts has datasets[0].trigger 'sks cat'" in said
    for prompts in (["a dog", "photo of SKS  cat"], ["a (sks:1.3) cat"]):
        assert not list(recipe("sks cat", prompts=prompts).warnings())
    words = {"kind": "textual_inversion", "tokens": [{"token": "<Toy>"}]}
    (said,) = [
        each
        for each in recipe("<Toy>", words, prompts=["a dog"]).warnings()
        if "no prompt of sample.prompts has" in each
    ]
    assert "no prompt of sample.prompts has <Toy>" in said
    assert not [
        each
        for each in recipe("<Toy>", words, prompts=["a <toy>"]).warnings()
        if "no prompt of sample.prompts has" in each
    ]


def test_prompts_are_without_what_nobody_sees() -> None:
    found = recipe("s\u200bks \\(x\\)", prompts=["a\u00ad cat \\(x\\)\n"], negative="\ufeffbad")
    assert found.sample is not None
    assert (found.sample.prompts, found.sample.negative) == (("a cat \\(x\\)\n",), "bad")
    assert found.datasets[0].trigger == "sks (x)"
    for prompt in ("\u200b", " \u200b"):
        with pytest.raises(ValueError, match="a rule is broken"):
            recipe(prompts=[prompt])
