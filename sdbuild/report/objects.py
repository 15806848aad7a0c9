"""What the outs of a state hold: objects of DVC's cache, fetched from the remote where they are not here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdbuild.build.cache import LocalCache
from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.lockfile import LockFile
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.data.records import read_captions, read_images
from sdbuild.errors import DataError, UsageError
from sdbuild.report.changes import Picture
from sdbuild.storage.safe_paths import is_md5


class Objects:
    """Content by MD5; a console is told when the remote is in trouble."""

    def __init__(self, project: Project, console: Console | None = None) -> None:
        self._project = project
        self._console = console
        self._cache = LocalCache(project)
        self._wanted: set[str] = set()
        self.pictures = lru_cache(maxsize=8)(self._pictures)  # those of a state are compared with the next one's

    def want(self, md5s: Iterable[str | None]) -> None:
        """Fetch what is not here, all at once; what the remote lacks too, and what was asked for before, stays away."""
        absent = {md5 for md5 in md5s if is_md5(md5) and not self._cache.path(md5).exists()} - self._wanted
        self._wanted |= absent
        if not absent or not has_remote(self._project):
            return
        from sdbuild.build.history import History

        history = History(self._project, LockFile(self._project), (), self._console)
        try:
            history.fetch(absent)
        finally:
            history.close()

    def file(self, md5: str | None) -> Path | None:
        """Where the content of a file is kept; None where it is not here."""
        path = self._cache.path(md5) if md5 and is_md5(md5) else None
        return path if path and path.exists() else None

    def files(self, md5: str | None) -> Mapping[str, str] | None:
        """MD5 of each file of a folder; None where it is not here."""
        return self._cache.files(md5) if md5 else None

    def metrics(self, md5: str | None) -> Mapping[str, Any] | None:
        """What a `metrics.json` says; None where it is not here."""
        path = self.file(md5)
        try:
            found = json.loads(path.read_bytes()) if path else None
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _pictures(self, images: str | None, captions: str | None) -> tuple[Picture, ...] | None:
        """Pictures with their captions, by the MD5s of `images.jsonl` and `captions.jsonl`; None without the former."""
        rows, texts = self.file(images), self.file(captions)
        if rows is None:
            return None
        try:
            known = {row.key: " | ".join((row.text, *row.others)) for row in read_captions(texts)} if texts else {}
            return tuple(
                Picture(path=row.path, digest=row.digest, caption=known.get(row.key)) for row in read_images(rows)
            )
        except DataError:  # from a version with other rows
            return None


def has_remote(project: Project, config: str | None = None) -> bool:
    """Whether a default remote is configured: in the project as it is, or with another `.dvc/config`, given as text."""
    try:
        return bool(DvcConfig(project.root, repo=config).remote)
    except UsageError:
        return False
