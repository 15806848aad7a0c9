"""A name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

from sdbuild.errors import UsageError


def refuse_unknown(recipe: str, known: Iterable[str], where: str) -> NoReturn:
    """Raise the error for a recipe that is not there.

    Raises:
        UsageError: always; the message has the nearest name.
    """
    names = sorted(known)
    near = difflib.get_close_matches(recipe, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(names)}" if names else ""
    raise UsageError(f"no recipe {recipe} {where}{hint}")
