"""What steps really read: views of their inputs and the content of their base, as digests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbuild.build.project import Project
from sdbuild.build.reasons import describe_change
from sdbuild.build.statcache import StatCache
from sdbuild.data import views
from sdbuild.data.records import count_skipped, read_captions, read_images, read_skipped
from sdbuild.errors import DataError, Problem
from sdbuild.plan.model import Base, Step, View
from sdbuild.recipe.captioners import own_models
from sdbuild.storage.atomic import write_atomic


class Reads:
    """Digests of what steps read, from inputs that are on disk.

    The content behind a digest is remembered below `.sdbuild/`, so that a later change can be told in words.
    """

    def __init__(self, project: Project, stat: StatCache) -> None:
        self._project = project
        self._stat = stat
        self.places: dict[Path, Path] = {}
        """Where the content of some files is taken from instead."""
        self._bases: dict[tuple[Base, tuple[str, ...]], str] = {}

    def all(self, step: Step) -> dict[str, str]:
        """Digests of everything that a step reads.

        Raises:
            DataError: an input or the base is damaged or not there.
        """
        return {view: self.digest(view, step) for view in step.views}

    def digest(self, view: View, step: Step) -> str:
        """Digest of one view of a step's inputs."""
        if view == "base":
            return self._base(step)
        content = self._content(view, step)
        digest = views.digest_of(content)
        path = self._path(digest)
        if not path.exists():
            with contextlib.suppress(OSError):  # it only serves to tell a later change in words
                write_atomic(path, json.dumps(content))
        return digest

    def forget(self) -> None:
        """Look at bases anew: one may have changed."""
        self._bases.clear()

    def changes(self, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
        """Differences between recorded and present digests, in words."""
        reasons: list[str] = []
        for view in new:
            if old.get(view) != new[view]:
                reasons += describe_change(view, self._recall(old.get(view)), self._recall(new[view]))
        return reasons

    def _content(self, view: View, step: Step) -> Any:
        project = self._project.root
        images, captions = (self._place(project / step.folder / f"{name}.jsonl") for name in ("images", "captions"))
        match view:
            case "pictures":
                return {dep.path: views.pictures(self._stat.listing(dep.path, whole=True)) for dep in step.deps}
            case "captions":
                skipped = len(read_skipped(images))
                found = views.texts_of(read_images(images), step.spec, project)
                return {**found, "skipped": skipped} if skipped else found
            case "pixels":
                return views.pixels(read_images(images))
            case "texts":
                return views.texts(read_captions(captions), step.spec)
            case "records":
                return {**views.records(read_captions(captions)), "skipped": count_skipped(captions)}
            case "model":
                return {path: self._stat.listing(path, whole=True) for path in own_models(step.spec)}
            case "base":
                raise AssertionError(view)

    def _place(self, path: Path) -> Path:
        return self.places.get(path, path)

    def _base(self, step: Step) -> str:
        key = (step.base, step.components)
        if key not in self._bases:
            from sdbuild.families.digest import base_digest
            from sdbuild.families.sources import find

            folder = find(step.base, self._project.root)
            if folder is None:
                raise DataError(f"base {step.base.model} is not ready on this machine; `doit` brings it")
            self._bases[key] = base_digest(folder, step.components, self._hash_file)
        return self._bases[key]

    def _hash_file(self, path: Path) -> str:
        found = self._stat.digest(str(path))
        if found is None:
            raise DataError([Problem(file=str(path), message="cannot be read as a file; copy the base again")])
        return found.md5

    def _recall(self, digest: str | None) -> Any:
        if digest is None:
            return None
        path = self._path(digest)
        try:
            content = json.loads(path.read_bytes())
            if views.digest_of(content) == digest:
                return content
        except (OSError, ValueError, RecursionError):
            pass
        with contextlib.suppress(OSError):  # damaged: written again when such content is read again
            path.unlink(missing_ok=True)
        return None

    def _path(self, digest: str) -> Path:
        return self._project.private / "cache" / "views" / f"{digest}.json"
