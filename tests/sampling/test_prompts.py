"""What brackets in prompts mean."""

from __future__ import annotations

import pytest

from sdbuild.sampling.prompts import words


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a (red:1.5) cat", [("a ", 1), ("red", 1.5), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:1.5) cat:2)", [("a ", 2), ("red", 3), (" cat", 2)]),
        ("[(red)]", [("red", 1)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        (r"a \\ cat\n", [("a \\ cat\\n", 1)]),
        ("(red", [("red", 1.1)]),
        ("[red (cat", [("red ", 1 / 1.1), ("cat", 1)]),
        ("red) cat]", [("red) cat]", 1)]),
        ("ratio 3:4 and (a: b)", [("ratio 3:4 and ", 1), ("a: b", 1.1)]),
        ("12:30)", [("12:30)", 1)]),
        ("(low:.5)(none:0)(less:-1)", [("low", 0.5), ("none", 0), ("less", -1)]),
        ("(猫:1.2) 🐱", [("猫", 1.2), (" 🐱", 1)]),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = words(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])
