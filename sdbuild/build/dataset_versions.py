"""Which version of a dataset lies on disk: the one that its `.dvc` file names, another one, or one with edits.

Git moves the `.dvc` file, DVC the pictures. After a `git pull` or a switch of branches the folder holds what it held
before, and that is no edit: saving it would undo what others did. So what the folder was last seen to hold while both
agreed is remembered below `.sdbuild/`; where that is not known, git's history of the `.dvc` file is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from sdbuild.build.cache import LocalCache
from sdbuild.build.project import Project
from sdbuild.build.revisions import OwnerError, Revisions
from sdbuild.build.statcache import Digest, StatCache
from sdbuild.build.tracked import DataFile
from sdbuild.errors import Problem, UsageError
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.phrases import first_few

State = Literal["same", "edited", "outdated", "diverged"]
"""The version that the `.dvc` file names; that one with edits; an older version; an older one with edits."""


class Versions:
    """The versions of a project's datasets."""

    def __init__(self, project: Project, stat: StatCache) -> None:
        self._project = project
        self._stat = stat
        self._cache = LocalCache(project)
        self._memory = project.private / "datasets.json"

    def named(self, path: str) -> str | None:
        """MD5 of the version that the `.dvc` file of a dataset names; None where there is none that is plain."""
        file = DataFile.read(self._project, f"{path}.dvc")
        return file.md5s[0] if file and file.plain and len(file.md5s) == 1 else None

    def keeper(self, path: str) -> str:
        """The folder whose `.dvc` file keeps a dataset: itself, or one above it that DVC keeps as a whole."""
        folder = PurePosixPath(path)
        above = (each.as_posix() for each in (folder, *folder.parents) if each.name)
        return next((each for each in above if (self._project.root / f"{each}.dvc").is_file()), path)

    def part_problem(self, path: str) -> Problem | None:
        """Why a dataset cannot be used of which the folder is kept as a part of another."""
        keeper = self.keeper(path)
        if keeper == path:
            return None
        if not (self._project.root / path).exists():
            message = f"is not here; {keeper}.dvc keeps it with all of {keeper}: `dvc pull {keeper}.dvc` brings that"
            return Problem(file=path, message=message)
        words = self.warning(keeper, self.state(keeper))
        return Problem(message=words) if words else None

    def state(self, path: str) -> State:
        """Compare a dataset on disk with its `.dvc` file; one that is not tracked, or not there, is the same."""
        found, named = self._stat.digest(path), self.named(path)
        if found is None or named is None:
            return "same"
        if found.md5 == named:
            self.note(path, named)
            return "same"
        return self._judge(path, found, named)

    def note(self, path: str, md5: str) -> None:
        """Remember that a folder holds what its `.dvc` file names."""
        known = self._known()
        if known.get(path) != md5:
            write_atomic(self._memory, json.dumps({**known, path: md5}, indent=1, sort_keys=True))

    def warning(self, path: str, state: State) -> str | None:
        """The warning for a dataset that is not at the version of its `.dvc` file."""
        if state == "outdated":
            return (
                f"{path} holds an older version than {path}.dvc names, as after `git pull`; "
                f"`sdbuild pull` or `dvc checkout {path}.dvc` checks out the named one"
            )
        return str(self.problem(path)) if state == "diverged" else None

    def problem(self, path: str) -> Problem:
        """The problem of a dataset that holds edits of another version than its `.dvc` file names."""
        base = self._known().get(path)
        old = self._cache.files(base) if base else None
        edited = ""
        if old is not None:
            names = sorted(_differing(self._stat.listing(path), old))
            edited = f" ({first_few(names)})"
        of = f"version {base[:8]}" if base else "an older version"
        message = (
            f"the folder holds edits{edited} of {of}, and {path}.dvc now names version {(self.named(path) or '')[:8]}: "
            f"neither is touched; to take that one, copy your edits elsewhere and run "
            f"`{self._checkout_command(path)}`; "
            f"to keep the folder instead, `dvc add {path}`"
        )
        return Problem(file=path, message=message)

    def not_brought(self, path: str) -> Problem:
        """Why the version that a `.dvc` file names could not be brought into place."""
        tracked = (self._project.root / f"{path}.dvc").exists()
        named = self.named(path)
        if named and self._cache.has(named) and (self._project.root / path).exists():
            message = (
                f"it holds files that DVC's cache lacks, and {path}.dvc names another version: neither is touched; "
                f"copy what you want to keep elsewhere and run `{self._checkout_command(path)}`"
            )
        elif tracked:
            message = "neither DVC's cache nor its remote has it; run `sdbuild push` in a clone that has it"
        else:
            message = "no such folder"
        return Problem(file=path, message=message)

    def overwritten(self, path: str) -> Problem | None:
        """Whether DVC has just saved an older version over a newer one that was never here, as `dvc repro` does."""
        named = self.named(path)
        if named is None:
            return None
        try:
            with Revisions(self._project.root) as revisions:
                content = revisions.read("HEAD", f"{path}.dvc")
        except UsageError:
            return None
        head = DataFile.parse(f"{path}.dvc", (content or b"").decode(errors="replace"))
        newest = head.md5s[0] if head and head.plain else named
        if newest == named or self._cache.has(newest):
            return None
        if named not in self._earlier(path, newest):
            return None
        message = (
            f"the folder holds an older version than the last commit's {path}.dvc, and DVC has saved that one there; "
            f"`git checkout -- {path}.dvc` and `sdbuild pull` bring the newer one"
        )
        return Problem(file=path, message=message)

    def _checkout_command(self, path: str) -> str:
        """The command that checks out the version of the `.dvc` file over whatever lies there."""
        named = self.named(path)
        here = named is not None and self._cache.has(named)
        return f"dvc {'checkout' if here else 'pull'} --force {path}.dvc"

    def _judge(self, path: str, found: Digest, named: str) -> State:
        base = self._known().get(path)
        if base == named:
            return "edited"
        others = [base] if base is not None else self._earlier(path, named)
        if found.md5 in others:
            return "outdated"
        disk, new = self._stat.listing(path), self._cache.files(named)
        lists = [files for files in map(self._cache.files, others) if files is not None]
        if base is None and not disk:  # nothing was checked out yet: what git keeps of the folder is all that is there
            return "outdated"
        if new is None:
            return "diverged" if base is not None or lists else "edited"
        changes = len(_differing(disk, new))
        return "edited" if all(changes < len(_differing(disk, old)) for old in lists) else "diverged"

    def _earlier(self, path: str, named: str) -> list[str]:
        """Versions that the `.dvc` file has named in commits before."""
        found: dict[str, None] = {}
        try:
            with Revisions(self._project.root) as revisions:
                for commit in revisions.commits(f"{path}.dvc", everywhere=True):
                    content = revisions.read(commit.id, f"{path}.dvc")
                    file = DataFile.parse(f"{path}.dvc", (content or b"").decode(errors="replace"))
                    found.update(dict.fromkeys(file.md5s if file else ()))
        except OwnerError:
            raise
        except UsageError:  # without git nobody but the user changes the file
            return []
        return [md5 for md5 in found if md5 != named]

    def _known(self) -> Mapping[str, str]:
        try:
            known = json.loads(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _differing(disk: Mapping[str, str], files: Mapping[str, str]) -> set[str]:
    return {name for name in {*disk, *files} if disk.get(name) != files.get(name)}
