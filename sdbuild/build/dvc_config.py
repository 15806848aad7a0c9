"""DVC's configuration, of all its levels, read without importing DVC.

DVC merges four files, each over the one before: the system's, the user's (`dvc config --global`), the project's and
the clone's own (`--local`). What is not set in any of them has DVC's default.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdbuild.errors import UsageError

Sections = dict[str, dict[str, Any]]
"""Settings by section, all in small letters; a remote's are under ``remote "name"``."""

_REMOTE = re.compile(r'\s*remote\s*"(.*)"\s*')


class DvcConfig:
    """The configuration of a project."""

    def __init__(self, root: Path, *, repo: str | None = None) -> None:
        """Read it; `repo` is the text of another `.dvc/config`, e.g. that of a past state.

        Raises:
            UsageError: one of the files cannot be read as a configuration.
        """
        self._root = root
        self.sections: Sections = {}
        self._folders: dict[tuple[str, str], Path] = {}
        for file, text in self._texts(repo):
            for section, settings in _parse(file, text).items():
                self.sections.setdefault(section, {}).update(settings)
                self._folders.update(((section, name), file.parent) for name in settings)

    @property
    def cache(self) -> Path:
        """Root of the cache."""
        named = self.sections.get("cache", {}).get("local")
        section, name = (f'remote "{named}"'.lower(), "url") if named else ("cache", "dir")
        said = self.sections.get(section, {}).get(name)
        if not isinstance(said, str) or not said:
            return self._root / ".dvc" / "cache"
        return Path(os.path.abspath(self._folders[section, name] / os.path.expanduser(said))).resolve()

    @property
    def remote(self) -> str:
        """Name of the default remote; empty where there is none."""
        said = self.sections.get("core", {}).get("remote")
        return said if isinstance(said, str) else ""

    @property
    def remote_url(self) -> str:
        """Where the default remote is, as it is configured."""
        return str(self.sections.get(f'remote "{self.remote.lower()}"', {}).get("url", ""))

    def committed_cache(self) -> str | None:
        """What the committed `.dvc/config` says of where the cache is, if that is what counts."""
        if self._folders.get(("cache", "dir")) != self._root / ".dvc":
            return None
        said = self.sections["cache"]["dir"]
        local = self._root / ".dvc" / "config.local"
        if "dir" in (_parse(local, _read(local)).get("cache", {})):
            return None
        shown = subprocess.run(
            ["git", "show", "HEAD:./.dvc/config"], cwd=self._root, capture_output=True, text=True, check=False
        )
        if shown.returncode:
            return None
        committed = _parse(self._root / ".dvc" / "config", shown.stdout).get("cache", {}).get("dir")
        return str(said) if committed == said else None

    def _texts(self, repo: str | None) -> Iterator[tuple[Path, str]]:
        own = self._root / ".dvc"
        for file in (_level("SYSTEM"), _level("GLOBAL"), own / "config", own / "config.local"):
            yield file, repo if repo is not None and file == own / "config" else _read(file)


def _level(name: str) -> Path:
    """The file of a level above the project, where DVC looks for it."""
    import platformdirs  # comes with dvc

    folder = os.environ.get(f"DVC_{name}_CONFIG_DIR")
    if not folder:
        find = platformdirs.site_config_dir if name == "SYSTEM" else platformdirs.user_config_dir
        folder = find("dvc", "iterative")
    return Path(folder) / "config"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{file}: DVC's configuration cannot be read ({reason}); mend or delete it") from None


def _parse(file: Path, text: str) -> Sections:
    if not text.strip():
        return {}
    from configobj import ConfigObj, ConfigObjError  # comes with dvc

    try:
        found: Mapping[str, Any] = ConfigObj(io.StringIO(text)).dict()
    except (ConfigObjError, UnicodeError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UsageError(f"{file}: DVC's configuration cannot be read ({reason}); mend or delete it") from None
    sections = {name: settings for name, settings in found.items() if isinstance(settings, Mapping)}
    return {_section(name): {key.lower(): value for key, value in each.items()} for name, each in sections.items()}


def _section(name: str) -> str:
    match = _REMOTE.fullmatch(name.lower())
    return f'remote "{match[1]}"' if match else name.lower()
