"""Differences in words, as lines of styled pieces for the console."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sdbuild.report.changes import ABSENT, Change, word_changes
from sdbuild.report.difference import Difference

Line = tuple[tuple[str, str], ...]
"""Pieces of a line: text and style (`old`, `new`, `strong`, `faint`, or none)."""

QUIET_METRICS = frozenset({"seconds", "memory", "steps", "pictures", "holdout", "skipped"})
"""Not told in words: settings and pictures say it, or it differs from run to run."""
REMEDY = "`sdbuild pull` brings it"


def value(found: Any) -> str:
    """A setting."""
    return repr(found) if found is ABSENT else json.dumps(found, ensure_ascii=False)


def figure(found: Any) -> str:
    """A metric; six digits tell results apart."""
    return f"{found:.6g}" if isinstance(found, float) else value(found)


def changed_value(change: Change) -> str:
    """`train.learning_rate: 0.001 -> 0.0005`."""
    return f"{change.key}: {value(change.old)} -> {value(change.new)}"


def changed_figures(difference: Difference) -> list[str]:
    """Metrics that say how good the adapter is: `train_loss: 0.41 -> 0.4`, or their values in a first state."""
    told = [change for change in difference.metrics if change.key not in QUIET_METRICS]
    if difference.event == "added":
        return [f"{change.key}: {figure(change.new)}" for change in told]
    return [f"{change.key}: {figure(change.old)} -> {figure(change.new)}" for change in told]


def summary(difference: Difference) -> Iterator[str]:
    """What changed, a line each for pictures, captions, every setting and every metric."""
    if difference.event == "removed":
        yield "removed"
        return
    if difference.event == "added":
        yield "first built"
    pictures = difference.pictures
    if pictures is not None:
        counts = (("+", pictures.added), ("-", pictures.removed), ("~", pictures.changed))
        words = [f"{sign}{len(found)}" for sign, found in counts if found]
        if pictures.renamed:
            words.append(f"({len(pictures.renamed)} renamed)")
        if words:
            yield f"pictures {' '.join(words)}"
        if pictures.recaptioned:
            yield f"captions ~{len(pictures.recaptioned)}"
    yield from map(changed_value, difference.settings)
    yield from changed_figures(difference)
    yield from missing(difference)
    silent = not pictures and not difference.settings and not difference.absent and difference.event == "changed"
    if silent and difference.rebuilt:
        yield f"built anew: {', '.join(difference.rebuilt)}"


def missing(difference: Difference) -> Iterator[str]:
    """What cannot be told, with the remedy."""
    if difference.absent:
        yield f"not here: {', '.join(difference.absent)}; {REMEDY}"


def details(difference: Difference) -> Iterator[Line]:
    """What changed, in full."""
    pictures = difference.pictures
    if pictures is not None and any((pictures.added, pictures.removed, pictures.changed, pictures.renamed)):
        yield (("pictures", "strong"),)
        for style, sign, found in (("new", "+", pictures.added), ("old", "-", pictures.removed)):
            for picture in found:
                caption = f"  {picture.caption}" if picture.caption else ""
                yield ((f"  {sign} {picture.path}", style), (caption, "faint"))
        yield from (((f"  ~ {new.path}", ""),) for _, new in pictures.changed)
        yield from (((f"  {old.path} -> {new.path}", ""),) for old, new in pictures.renamed)
    if pictures is not None and pictures.recaptioned:
        yield (("captions", "strong"),)
        for old, new in pictures.recaptioned:
            yield ((f"  {new.path}: ", ""), *_word_pieces(old.caption or "", new.caption or ""))
    yield from _section("settings", map(changed_value, difference.settings))
    yield from _section("metrics", changed_figures(difference))
    yield from (((line, ""),) for line in missing(difference))


def _section(title: str, lines: Iterable[str]) -> Iterator[Line]:
    found = list(lines)
    if found:
        yield ((title, "strong"),)
        yield from (((f"  {line}", ""),) for line in found)


def _word_pieces(old: str, new: str) -> Iterator[tuple[str, str]]:
    marks = {"same": ("", "", ""), "old": ("[-", "-]", "old"), "new": ("{+", "+}", "new")}
    for mark, text in word_changes(old, new):
        before, after, style = marks[mark]
        yield f"{before}{text}{after}", style
