"""From what a model said to a caption. What it says is data: text on one line, without invisible characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from sdbuild.storage import text_cleaning

_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’", "`": "`"}
_SENTENCE = re.compile(r"[.!?。！？](?=\s|$)")


def clean(said: str) -> str:
    """Clean a model's answer as any caption, and remove surrogates, unassigned characters and surrounding quotes."""
    text = text_cleaning.clean("".join(each for each in said if unicodedata.category(each) not in ("Cs", "Co", "Cn")))
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def finish(text: str, settings: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The caption as it is trained with.

    Args:
        text: clean, what the last pass said.
        settings: of the captioner: `replace` as pairs, `prefix`, `suffix`.
        last: of the last pass: `style`, `avoid`, `max_words`.
    """
    for old, new in settings.get("replace") or ():
        text = text.replace(old, new)
    if last["style"] == "tags":
        text = ", ".join(_tags(text, last.get("avoid") or ()))
    text = shorten(" ".join(text.split()), last.get("max_words"), tags=last["style"] == "tags")
    return clean(f"{settings.get('prefix', '')}{text}{settings.get('suffix', '')}") if text else ""


def shorten(text: str, words: int | None, *, tags: bool = False) -> str:
    """Cut a text after so many words: where a sentence or else a part of one ends, or a tag."""
    found = list(re.finditer(r"\S+", text))
    if words is None or len(found) <= words:
        return text
    kept = text[: found[words - 1].end()]
    if not tags and (ends := list(_SENTENCE.finditer(kept))):
        return kept[: ends[-1].end()]
    if kept[-1] not in ",;" and (commas := [kept.rfind(mark) for mark in ",;" if mark in kept]):
        kept = kept[: max(commas)]
    return kept.rstrip(",;: ")


def avoided(text: str, words: Sequence[str]) -> list[str]:
    """Those of some words that a text has, as words of their own."""
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]


def _tags(text: str, avoid: Sequence[str]) -> list[str]:
    """Tags, each once, without those that have words to avoid."""
    found: dict[str, str] = {}
    for part in re.split(r"[,;、]", text):
        tag = part.strip(" .")
        if tag and not avoided(tag, avoid):
            found.setdefault(tag.casefold(), tag)
    return list(found.values())
