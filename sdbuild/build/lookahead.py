"""Looks past a stale images step: the steps after it stay fresh if it will list the same pictures as before.

That is known without running where all pictures were examined before, as after a rename.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import md5
from pathlib import Path
from typing import Any

from sdbuild.build.expected import Expected, expected
from sdbuild.build.oracle import Oracle, Verdict, recorded_parameters
from sdbuild.build.statcache import Digest
from sdbuild.data.records import read_images, write_images
from sdbuild.errors import DataError
from sdbuild.plan.model import Step


def _settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key not in ("datasets", "reads")}


class Lookahead:
    """Judges steps as if the images steps had run."""

    def __init__(self, oracle: Oracle, folder: Path) -> None:
        """Look ahead; `folder` is for lists of pictures as they will be."""
        self._oracle = oracle
        self._folder = folder
        self._ahead: Oracle | None = None
        self._unsure: set[str] = set()
        for step in oracle.steps.values():
            if step.kind == "images" and oracle.entry(step) and oracle.judge(step.name).action == "run":
                self._look(step)

    def stays(self, verdict: Verdict) -> bool:
        """Whether a step that waits for others will turn out fresh."""
        return (
            verdict.state == "pending"
            and self._ahead is not None
            and self._ahead.judge(verdict.step.name).action == "none"
        )

    def unsure(self, verdict: Verdict) -> bool:
        """Whether a step that waits may turn out fresh, which only a run can tell."""
        step = verdict.step
        if verdict.state != "pending" or self._oracle.entry(step) is None:
            return False
        return step.recipe in self._unsure or self._may_stay(step)

    def _may_stay(self, step: Step) -> bool:
        """Whether a step is fresh, makes what it made before, or waits for such steps alone."""
        ahead = self._ahead or self._oracle
        verdict, entry = ahead.judge(step.name), ahead.entry(step)
        if verdict.action == "none":
            return True
        if entry is None or verdict.wrong:
            return False
        if verdict.state == "pending":
            makers = (ahead.producers.get(dep.path) for dep in step.deps if not ahead.is_assumed(dep.path))
            return all(self._may_stay(maker) for maker in makers if maker is not None)
        before = recorded_parameters(entry, step)
        same = bool(verdict.reads) and verdict.reads == before.get("reads")
        if step.kind == "latents":  # of its datasets it reads the pixels alone
            return same and _settings(before) == _settings(step.spec)
        return same and step.kind == "captions"  # what it reads is what it makes

    def _look(self, step: Step) -> None:
        try:
            found = expected(self._oracle, step)
        except DataError:  # told when the step runs
            return
        if found is None or found.new:
            if found is not None and self._as_many(step, found):
                self._unsure.add(step.recipe)
            return
        path = self._folder / f"{step.recipe}.jsonl"
        write_images(path, found.placed)
        if self._ahead is None:
            self._ahead = self._oracle.another()
        content = path.read_bytes()
        self._ahead.assume(step.outs[0].path, path, Digest(md5(content).hexdigest(), len(content)))

    def _as_many(self, step: Step, found: Expected) -> bool:
        """Whether there are as many picture files as before: then one may have been saved again, and be the same."""
        try:
            rows = read_images(self._oracle.project.root / step.outs[0].path)
        except (OSError, DataError):
            return True
        return len(found.known) + len(found.new) == sum(1 + len(row.duplicates) for row in rows)
