"""Texts as they are read: what nobody sees goes, what has a meaning stays."""

from __future__ import annotations

import unicodedata

from sdbuild.captioners.texts import clean as said
from sdbuild.storage.text_cleaning import clean, plain, says, visible

KEPT = (
    "a cat",
    "👩‍🚀 and ❤️‍🔥, 👨‍👩‍👧‍👦 🏳️‍🌈 🏴‍☠️ 👩🏽‍⚕️ 1️⃣ ©️ ☺︎",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "می‌خواهم",
    "क्‍ष and ശ്രീ‌",
    "葛󠄀城",
    "\u0601\u0661",
    "ᠠ᠋",
    "C:\\cats",
    "猫, кот, é",
)
CHANGED = (
    ("red\u200bcat\u00ad\u200e", "redcat"),
    ("\u200b", ""),
    ("\ufeffa cat\r\nb\x00c", "a cat b c"),
    ("auf\u200clage \u200dx\u200d", "auflage x"),
    ("cat\ufe0f \ufe0f☺\ufe0f\ufe0f", "cat ☺\ufe0f"),
    ("\u2800\u3164\u034f", ""),
    ("a\u202eb\u2066c\u061c\u2060\U000e0041", "abc"),
    ("e\u200b\u0301", "é"),
    ("a\u2028b\u00a0c\u3000 d\t", "a b c d"),
    (r"saber \(fate\), \[x\] \\o/", r"saber (fate), [x] \o/"),
)


def test_what_has_a_meaning_stays() -> None:
    for text in KEPT[:4] + KEPT[5:]:
        assert clean(text) == text
        assert said(text) == text
    assert clean(KEPT[4]) == KEPT[4].removesuffix("\u200c"), "a joiner at the end joins nothing"


def test_what_nobody_sees_goes() -> None:
    for text, wanted in CHANGED:
        assert clean(text) == wanted
        assert said(f'"{text}"') == wanted


def test_once_visible_is_visible() -> None:
    """Any two characters: what is left is in NFC and is left a second time."""
    everything = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    odd = [each for each in everything if unicodedata.category(each)[0] in "CMZ" or each in "a☺क猫1"]
    for place, character in enumerate(odd):
        for text in (f"a{character}b", character + odd[-place], f"☺{character}☺"):
            once = visible(text)
            assert visible(once) == once
            assert unicodedata.is_normalized("NFC", once)


def test_words_are_the_same_in_capitals() -> None:
    assert says("a photo of <TOY>", "<Toy>")
    assert not says("a photo of a toy", "<toy>")
    assert plain(r"(saber \(fate\):1.3), [x]") == "saber fate, x"
