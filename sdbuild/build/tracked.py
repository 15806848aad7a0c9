"""What `.dvc` files say, read without importing DVC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdbuild.build.lockfile import load_yaml
from sdbuild.build.project import Project

_PLAIN = frozenset({"md5", "size", "nfiles", "hash", "path", "desc", "type", "labels", "meta"})
_APART = ("build", ".git", ".dvc", ".sdbuild", ".venv", "node_modules")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One `.dvc` file."""

    path: str
    """Relative to the project."""
    md5s: tuple[str, ...]
    """What it keeps."""
    plain: bool
    """As `dvc add` writes it; imports, remotes of their own and older formats are left to DVC."""

    @property
    def data(self) -> str:
        """The file or folder that it keeps."""
        return self.path.removesuffix(".dvc")

    @classmethod
    def read(cls, project: Project, path: str) -> DataFile | None:
        """Read one; None if it is not there or cannot be understood."""
        try:
            content = load_yaml((project.root / path).read_text(encoding="utf-8"))
            outs = content["outs"]
            plain = not content.get("deps") and all(out.keys() <= _PLAIN and out["hash"] == "md5" for out in outs)
            return cls(path=path, md5s=tuple(str(out["md5"]) for out in outs), plain=plain)
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return None


def data_files(project: Project) -> Iterator[DataFile]:
    """All `.dvc` files of a project."""
    for folder, inner, files in os.walk(project.root):
        inside = Path(folder).relative_to(project.root)
        inner[:] = [name for name in inner if name not in _APART]
        for name in sorted(files):
            if name.endswith(".dvc"):
                found = DataFile.read(project, (inside / name).as_posix())
                if found is not None:
                    yield found
