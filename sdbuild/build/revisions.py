"""Commits of a project and files as they were in them, read through git's own commands. Light."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sdbuild.errors import UsageError

MOST = 128 << 20
"""Bytes of a file that is read; records and lists have some million at most."""
_LONGEST = 300
"""Letters of an author and of a subject that are told."""
_FIELDS = "%x1f".join(("%H", "%h", "%P", "%aI", "%an", "%s"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A commit as people know it."""

    id: str
    short: str
    parents: tuple[str, ...]
    date: str
    """Of the author, ISO 8601 with the offset of their clock."""
    author: str
    subject: str


class OwnerError(UsageError):
    """git does not read a repository that belongs to somebody else."""


class Revisions:
    """Reads a project's history; one process of git answers for all files."""

    def __init__(self, root: Path) -> None:
        """Open the history.

        Raises:
            UsageError: git is not installed, or the project is not under it, or it is another user's.
        """
        self._root = root
        self._reader: subprocess.Popen[bytes] | None = None
        self._refusal = ""
        found = self._git("rev-parse", "--show-prefix")
        if found is None and (allowing := re.search(r"git config .*safe\.directory .+", self._refusal)):
            raise OwnerError(f"git does not read {root}, which belongs to another user; `{allowing[0]}` allows it")
        if found is None:
            raise UsageError(f"{root} is not under git; `git init` and commit what builds record")
        self._prefix = found.rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End git's process."""
        if self._reader is not None:
            self._reader.kill()
            self._reader.communicate()
            self._reader = None

    def resolve(self, name: str) -> Commit:
        """The commit that a branch, tag, commit or expression such as `HEAD~2` names.

        Raises:
            UsageError: there is none.
        """
        found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found is None:
            if self._git("rev-parse", "--verify", "--quiet", "HEAD") is None:
                raise UsageError("nothing is committed yet; commit what was built first")
            raise UsageError(f"no revision {name}; `git log --oneline` and `git tag` show what there is")
        return next(self._log("--no-walk", found.strip()))

    def commits(self, *paths: str, everywhere: bool = False) -> list[Commit]:
        """Commits that changed some files, newest first: HEAD's, or `everywhere`, those of all branches and tags."""
        which = ("--full-history", "--exclude=refs/stash", "--all", "HEAD") if everywhere else ("HEAD",)
        if self._git("rev-parse", "--verify", "--quiet", "HEAD") is None:
            return []
        return list(self._log("--topo-order", *which, "--", *paths))

    def listed(self, folder: str) -> list[str]:
        """Files in a folder that git keeps, relative to the project; of a merge that is not done, all sides."""
        found = self._git("--literal-pathspecs", "ls-files", "-z", "--", folder) or ""
        return list(dict.fromkeys(filter(None, found.split("\0"))))

    def read(self, revision: str, path: str) -> bytes | None:
        """A file, relative to the project, as it was in a commit; None where it was not there."""
        return self.blob(f"{revision}:{self._prefix}{path}")

    def blob(self, name: str) -> bytes | None:
        """A file of git's by any name that it has; None where git does not have it."""
        try:
            question = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return None
        if b"\n" in question:  # which would be two questions
            return None
        if self._reader is None:
            self._reader = subprocess.Popen(
                ["git", "cat-file", "--batch"],
                cwd=self._root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        self._reader.stdin.write(question + b"\n")
        self._reader.stdin.flush()
        words = self._reader.stdout.readline().split()
        if len(words) != 3 or words[1] not in (b"blob", b"tree", b"commit", b"tag"):
            return None  # "… missing", or an end of the process
        size = int(words[2])
        if size > MOST:
            while size:
                size -= len(self._reader.stdout.read(min(size, 1 << 20))) or size
            self._reader.stdout.read(1)
            return None
        content = self._reader.stdout.read(size)
        self._reader.stdout.read(1)
        return content if words[1] == b"blob" else None

    def _log(self, *arguments: str) -> Iterator[Commit]:
        done = self._run(
            "-c", "log.showSignature=false", "log", "-z", "--encoding=UTF-8", f"--format={_FIELDS}", *arguments
        )
        if done.returncode:
            said = next(iter(done.stderr.decode("utf-8", "replace").splitlines()), "")
            raise UsageError(f"git cannot read the history ({_cut(said)}); `git fsck` tells more")
        for row in filter(None, done.stdout.decode("utf-8", "replace").split("\0")):
            id, short, parents, date, author, subject = row.split("\x1f", 5)
            yield Commit(
                id=id,
                short=short,
                parents=tuple(parents.split()),
                date=date,
                author=_cut(author),
                subject=_cut(subject.strip()),
            )

    def _git(self, *arguments: str) -> str | None:
        done = self._run(*arguments)
        self._refusal = done.stderr.decode("utf-8", "replace")
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(["git", *arguments], cwd=self._root, capture_output=True, check=False)
        except FileNotFoundError:
            raise UsageError("git is not installed; sdbuild keeps recipes and records in it") from None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
