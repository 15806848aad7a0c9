"""Datasets on disk: brought at the version that their `.dvc` files name, and saved as a step was built from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sdbuild.build.oracle import Oracle, Verdict
from sdbuild.console import Console
from sdbuild.errors import DataError

if TYPE_CHECKING:
    from sdbuild.build.history import History


class Datasets:
    """The datasets of a project that DVC tracks."""

    def __init__(self, oracle: Oracle, console: Console, history: Callable[[], History]) -> None:
        self._oracle = oracle
        self._console = console
        self._history = history

    def bring(self, path: str) -> None:
        """Bring the version of a dataset that its `.dvc` file names; an older one on disk is in the cache.

        Raises:
            DataError: neither cache nor remote has it.
        """
        versions, outdated = self._oracle.versions, (self._oracle.project.root / path).exists()
        if not self._history().fetch_data(path):
            raise DataError([versions.not_brought(path)])
        if named := versions.named(path):
            versions.note(path, named)
        if outdated:
            self._console.say(f"{path} held an older version than {path}.dvc names; doit checked out the named one")

    def save(self, verdict: Verdict) -> None:
        """Save the version of a tracked dataset that a step was built from; never over one that others made since."""
        versions = self._oracle.versions
        for path, digest in verdict.deps.items():
            if path in self._oracle.producers:
                continue
            keeper = versions.keeper(path)
            named = versions.named(keeper)
            if named is None or named == digest.md5 or versions.state(keeper) != "edited":
                continue
            self._history().save_data(keeper)
            if (named := versions.named(keeper)) is not None:
                versions.note(keeper, named)
