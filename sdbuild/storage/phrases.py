"""Parts of messages: the nearest known name, the first of many names, and long texts cut short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Suggest the nearest known name, e.g. ` (did you mean steps?)`; empty if none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def first_few(names: Sequence[str], most: int = 3) -> str:
    """List the first names, e.g. `a, b, c and 2 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def cut(text: str, most: int = 60) -> str:
    """Cut a text to at most so many letters, with an ellipsis at its end."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
