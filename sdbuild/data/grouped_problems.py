"""Groups problems that many files share into one line with a count. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from sdbuild.errors import Problem

MOST = 3
"""Files that are named one a line."""


def group_similar(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield problems in their order; of more than a few alike in one dataset's folder the first, with a count."""
    alike: dict[object, list[Problem]] = {}
    for number, problem in enumerate(problems):
        single = problem.file is None or problem.line is not None or problem.field is not None
        key = number if single else (_dataset(problem.file or ""), problem.message)
        alike.setdefault(key, []).append(problem)
    for group in alike.values():
        if len(group) <= MOST:
            yield from group
            continue
        names = [PurePosixPath(problem.file or "").name for problem in group[1:3]]
        yield replace(group[0], message=f"{group[0].message} (and {len(group) - 1} more: {', '.join(names)}, …)")


def _dataset(file: str) -> tuple[str, ...]:
    return PurePosixPath(file).parts[:2]
