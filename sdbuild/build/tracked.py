"""What `.dvc` files say, read without importing DVC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdbuild.build.lockfile import load_yaml
from sdbuild.build.project import Project
from sdbuild.build.statcache import Digest
from sdbuild.errors import InputError, Problem
from sdbuild.storage.regular_files import read_regular
from sdbuild.storage.safe_paths import is_md5

_PLAIN = frozenset({"md5", "size", "nfiles", "hash", "path", "desc", "type", "labels", "meta"})
_APART = ("build", ".git", ".dvc", ".sdbuild", ".venv", "node_modules")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One `.dvc` file."""

    path: str
    """Relative to the project."""
    md5s: tuple[str, ...]
    """What it keeps."""
    digest: Digest
    """The first of it, which of a dataset is all."""
    plain: bool
    """As `dvc add` writes it; imports, remotes of their own and older formats are left to DVC."""

    @property
    def data(self) -> str:
        """The file or folder that it keeps."""
        return self.path.removesuffix(".dvc")

    @classmethod
    def read(cls, project: Project, path: str) -> DataFile | None:
        """Read one; None if it is not there, or says nothing that is known here.

        Raises:
            InputError: it is damaged, or a merge left conflict marks in it.
        """
        return cls._of(path, _parsed(project, path))

    @classmethod
    def parse(cls, path: str, text: str) -> DataFile | None:
        """The same from its text, e.g. as it was in a commit; None too if it is damaged."""
        try:
            return cls._of(path, load_yaml(text))
        except (ValueError, RecursionError, yaml.YAMLError):
            return None

    @classmethod
    def _of(cls, path: str, content: Any) -> DataFile | None:
        try:
            outs = content["outs"]
            plain = (
                not content.get("deps")
                and "wdir" not in content
                and all(out.keys() <= _PLAIN and out["hash"] == "md5" for out in outs)
            )
            md5s = tuple(str(out["md5"]) for out in outs)
            size, count = (outs[0].get(key) for key in ("size", "nfiles"))
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        if wrong := [md5 for md5 in md5s if not is_md5(md5)]:
            message = f"{wrong[0][:60]!a} is not an MD5; restore it with git"
            raise InputError([Problem(file=path, message=message)])
        first = Digest(md5s[0], size if isinstance(size, int) else 0, count if isinstance(count, int) else None)
        return cls(path=path, md5s=md5s, plain=plain, digest=first)


def _parsed(project: Project, path: str) -> Any:
    def wrong(what: str, line: int | None = None) -> InputError:
        remedy = f"restore it with git (`git checkout HEAD -- {path}`), or `dvc add {path.removesuffix('.dvc')}`"
        return InputError([Problem(file=path, line=line, message=f"{what}; {remedy}")])

    text = ""
    try:
        text = read_regular(project.root / path).decode()
        content = load_yaml(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        before, conflict, _ = text.partition("<<<<<<<")
        if conflict:
            raise wrong("a merge left conflict marks", before.count("\n") + 1) from None
        mark = getattr(error, "problem_mark", None)
        raise wrong("is damaged: it cannot be read as YAML", None if mark is None else mark.line + 1) from None
    if not isinstance(content, dict) or not isinstance(content.get("outs"), list):
        raise wrong("is damaged: it does not say what is kept")
    return content


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
