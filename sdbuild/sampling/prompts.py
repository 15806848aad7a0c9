"""Prompts as people write them: words with weights, of any length.

``(word:1.3)`` multiplies a weight by 1.3, ``(word)`` by 1.1, ``[word]`` divides it by 1.1; a backslash makes a bracket
plain. Brackets lie within each other, and one that is not closed goes on to the end. This is what A1111 reads.
"""

from __future__ import annotations

import re

MORE = 1.1
"""What a pair of brackets does to a weight."""
_PIECES = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|[\\:]")


def words(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into pieces, each with its weight; neighbours of equal weight are one."""
    found: list[list[tuple[str, float]]] = [[]]
    opened: list[str] = []

    def close(factor: float) -> None:
        opened.pop()
        inside = found.pop()
        found[-1] += [(text, weight * factor) for text, weight in inside]

    for match in _PIECES.finditer(prompt):
        piece = match[0]
        if piece in "([":
            opened.append(piece)
            found.append([])
        elif piece == ")" and opened[-1:] == ["("]:
            close(MORE)
        elif piece == "]" and opened[-1:] == ["["]:
            close(1 / MORE)
        elif piece[0] == ":" and len(piece) > 1 and opened[-1:] == ["("]:
            close(float(piece[1:-1]))
        else:
            found[-1].append((piece[1:] if piece[0] == "\\" and len(piece) > 1 else piece, 1.0))
    while opened:
        close(MORE if opened[-1] == "(" else 1 / MORE)
    return _merged(found[0])


def plain(prompt: str) -> str:
    """The prompt without its weights."""
    return "".join(text for text, _ in words(prompt))


def _merged(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged
