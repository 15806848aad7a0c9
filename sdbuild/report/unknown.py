"""A name that nothing has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from sdbuild.errors import UsageError
from sdbuild.storage.phrases import did_you_mean


def refuse_unknown(recipe: str, known: Iterable[str], where: str) -> NoReturn:
    """Raise the error for a recipe that is not there.

    Raises:
        UsageError: always; the message has the nearest name.
    """
    names = sorted(known)
    hint = did_you_mean(recipe, names) or (f"; there are {', '.join(names)}" if names else "")
    raise UsageError(f"no recipe {recipe} {where}{hint}")
