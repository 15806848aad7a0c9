"""Cleaning of captions, prompts, triggers and new words, by one rule.

Invisible characters cost tokens and make captions differ that look alike, so they are removed; those with a meaning in
a script or an emoji stay. A backslash makes a bracket plain, as in prompts. Words are the same in capitals
and small letters, as CLIP's tokenizers read them.
"""

from __future__ import annotations

import re
import unicodedata

_ZWNJ, _ZWJ = "\u200c", "\u200d"
_BLANKS = "\u2800\u3164\uffa0"
"""Visible by their category only: Braille's blank, and fillers of Hangul."""
_GONE = "\u034f"
_FORMATS = frozenset(
    map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)))
)
"""Format characters that are seen: signs of numbers, the end of a verse, joints of hieroglyphs."""
_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
_MONGOLIAN_SELECTORS = "\u180b\u180c\u180d\u180f"
_BLACK_FLAG = "\U0001f3f4"
_JOINING = (
    *((0x590, 0x10A0), (0x1700, 0x1D00), (0xA800, 0xAC00), (0xFB1D, 0xFE00), (0xFE70, 0xFEFF)),
    *((0x10A00, 0x12000), (0x16A00, 0x16C00), (0x1E000, 0x1F000)),
)
"""Where letters lie that change with their neighbours, so that joiners between them have a meaning."""
_ESCAPED = re.compile(r"\\([()\[\]\\])")
_ORDINARY = re.compile(r"[ -~]*")


def visible(text: str) -> str:
    """Convert to NFC and remove invisible characters; control characters become spaces. Idempotent."""
    if _ORDINARY.fullmatch(text):
        return text
    kept: list[str] = []
    tags = False
    for place, character in enumerate(text):
        before = kept[-1] if kept else ""
        tags = character == _BLACK_FLAG or (tags and "\U000e0020" <= character <= "\U000e007f")
        if character in _BLANKS or (not character.isspace() and unicodedata.category(character) == "Cc"):
            kept.append(" ")
        elif character in (_ZWNJ, _ZWJ):
            if _joins(character, before, text[place + 1 : place + 2]):
                kept.append(character)
        elif character in _SELECTORS or character in _MONGOLIAN_SELECTORS:
            if _selects(character, before):
                kept.append(character)
        elif unicodedata.category(character) == "Cf":
            if character in _FORMATS or tags:
                kept.append(character)
        elif character not in _GONE:
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def clean(text: str) -> str:
    """Clean a caption: no invisible characters, one line, and `\\(` becomes `(`."""
    return unescaped(" ".join(visible(text).split()))


def unescaped(text: str) -> str:
    """Replace `\\(` by `(`, and so on. Not idempotent: do it once."""
    return _ESCAPED.sub(r"\1", text)


def says(text: str, word: str) -> bool:
    """Whether a text has a word anywhere in it, in capitals or small letters."""
    return word.lower() in text.lower()


def plain(prompt: str) -> str:
    """A prompt without brackets and weights, to look for words in it."""
    return re.sub(r":\s*[+-]?[\d.]+\s*(?=\))|\\?[()\[\]]", "", prompt)


def _joins(joiner: str, before: str, after: str) -> bool:
    """Whether a joiner stands where it has a meaning: between parts of an emoji, or letters that join."""
    if not before or before in (_ZWNJ, _ZWJ):
        return False
    if _in_joining_script(before):
        return joiner == _ZWJ or _in_joining_script(after)
    if joiner == _ZWNJ or not after:
        return False
    part = before in _SELECTORS or unicodedata.category(before) in ("So", "Sk")
    return part and unicodedata.category(after) in ("So", "Sm")


def _selects(selector: str, before: str) -> bool:
    """Whether a variation selector follows what has variants: no space, no letter of ASCII, no other selector."""
    if not before or before.isspace() or before in _SELECTORS or before in (_ZWNJ, _ZWJ):
        return False
    if selector in _MONGOLIAN_SELECTORS:
        return "\u1800" <= before <= "\u18af"
    return before > "\x7f" or before in "#*0123456789"


def _in_joining_script(character: str) -> bool:
    return (
        bool(character)
        and unicodedata.category(character)[0] in "LM"
        and any(first <= ord(character) < end for first, end in _JOINING)
    )
