"""Restores outs from the cache or the remote, and keeps the user's files that lie in their places."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdbuild.build.cache import LocalCache
from sdbuild.build.checkout_checks import check_folders
from sdbuild.build.lockfile import Entry
from sdbuild.build.oracle import Oracle
from sdbuild.build.project import Project
from sdbuild.build.user_files import UserFiles
from sdbuild.console import Console
from sdbuild.plan.model import Step
from sdbuild.storage.safe_paths import link_problem

if TYPE_CHECKING:
    from sdbuild.build.history import History


class Outs:
    """The outs of steps on disk."""

    def __init__(self, project: Project, oracle: Oracle, console: Console, history: Callable[[], History]) -> None:
        self._project = project
        self._oracle = oracle
        self._console = console
        self._history = history
        self._keeper = UserFiles(project, oracle.stat)

    def restore(self, step: Step, entry: Entry) -> bool:
        """Bring a recorded run's outs into place; False if neither cache nor remote has them.

        Raises:
            DataError: a link leads out of the folder of its outs.
        """
        check_folders(self._project, [step.folder])
        self._keep(step)
        return self._history().restore(step, entry)

    def put_back(self, step: Step) -> None:
        """After a failure: the last good outs, where a step had already replaced them."""
        self._oracle.forget()
        entry = self._oracle.entry(step)
        if entry is None or link_problem(self._project.root, step.folder):
            return
        present = [self._oracle.stat.digest(row["path"]) for row in entry.get("outs", [])]
        good = [row["md5"] for row in entry.get("outs", [])]
        if [digest.md5 if digest else None for digest in present] == good or not any(present):
            return
        if not self.restore(step, entry):  # DVC wants room in its cache, and the disk may be full
            for row in entry["outs"]:
                with contextlib.suppress(OSError):
                    LocalCache(self._project).copy(row["md5"], self._project.root / row["path"])

    def _keep(self, step: Step) -> None:
        for words in self._keeper.keep(step):
            self._console.warn(words)
