"""What has to stay in the cache: everything that a kept state names by its MD5.

Kept are the states in which the repository can be found again: the head of every branch, tag, stash and DVC
experiment; what lies in the working trees and their indexes; and of each branch the last states. What a state names is
read from the text of its `dvc.lock` and `.dvc` files, whoever wrote them: even where a merge has left conflict marks,
both sides are kept. Git that cannot be read stops everything, since what it would have said is not known.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbuild.build import blocks
from sdbuild.build.cache import LocalCache
from sdbuild.build.project import Project
from sdbuild.build.revisions import Revisions
from sdbuild.errors import StepError, UsageError

_MD5 = re.compile(rb"\bmd5['\"]?\s*:\s*['\"]?([0-9a-f]{32}(?:\.dir)?)(?![0-9a-f])")
_RECORDS = (":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc")
_SKIPPED = frozenset({".git", ".sdbuild"})


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What has to stay, and why."""

    md5s: frozenset[str]
    """Named by a kept state; `.dir` for a folder, whose files are not listed here."""
    refs: tuple[str, ...]
    """Full names of what git keeps: branches, tags, experiments, the stash."""


def find_kept(project: Project, states: int) -> Kept:
    """What is needed by all heads, all working trees, and of each branch by the last `states` of each recipe.

    Raises:
        UsageError: the project is not under git, or a part of its history is not here.
        StepError: git or a file cannot be read.
    """
    with Revisions(project.root) as revisions:
        repository = _Repository(project.root, revisions)
        repository.check_whole()
        refs = repository.refs()
        commits = {*refs.values(), *repository.heads(), *repository.stashed(refs)}
        texts: set[bytes] = set()
        for name, head in refs.items():
            if name.startswith(("refs/heads/", "refs/remotes/")):
                last, records = _last_states(repository, head, states)
                commits |= last
                texts |= records
        trees = repository.working_trees()
        blobs = {blob for commit in commits for blob in repository.records(commit)}
        blobs = blobs.union(*(repository.indexed(folder) for folder in trees))
        texts |= {repository.read(blob) for blob in blobs}
    cache = LocalCache(project).folder.resolve()
    named = set().union(*map(_named_in, texts), *(_named_on_disk(folder, cache) for folder in trees))
    return Kept(md5s=frozenset(named), refs=tuple(refs))


def _last_states(repository: _Repository, head: str, states: int) -> tuple[set[str], set[bytes]]:
    """The last states of a branch as commits, and earlier records of the recipes that it still has."""
    commits: set[str] = set()
    records: dict[str | None, set[str]] = {recipe: set() for recipe in repository.recipes(head)}
    for number, commit in enumerate(repository.changes(head)):
        if number < states:
            commits.add(commit)
        elif all(len(found) >= states for found in records.values()):
            break
        for recipe, record in repository.recipes(commit).items():
            if recipe in records and len(records[recipe]) < states:
                records[recipe].add(record)
    return commits, {record.encode() for found in records.values() for record in found}


class _Repository:
    """Git's answers; where it has none, nothing may be deleted."""

    def __init__(self, root: Path, revisions: Revisions) -> None:
        self._root = root
        self._revisions = revisions
        self._recipes: dict[str, dict[str | None, str]] = {}
        self._same: dict[str, str] = {}  # a record stays for many commits: memory holds it once

    def check_whole(self) -> None:
        """Refuse a history of which a part is not here: what only that part needs would be taken for garbage.

        Raises:
            UsageError: it is not whole; says what brings the rest.
        """
        if self._lines("rev-parse", "--is-shallow-repository") == ["true"]:
            raise UsageError(
                "this clone is shallow: which objects its unseen history needs is not known, and nothing was deleted; "
                "`git fetch --unshallow` brings it"
            )
        [place] = self._lines("rev-parse", "--git-path", "info/grafts")
        grafts = self._root / place
        if (grafts.is_file() and grafts.read_bytes().strip()) or self._lines("for-each-ref", "refs/replace"):
            raise UsageError(
                "this history is grafted: what git shows is not all that there is, and nothing was deleted; "
                "`git replace --list` and .git/info/grafts name what to remove first"
            )
        whole = ("rev-list", "--objects", "--missing=print", "--all", *self.heads(), "--", *_RECORDS)
        try:
            lacking = any(line.startswith(b"?") for line in self._git(self._root, *whole).splitlines())
        except StepError:
            if not self._is_partial():
                raise
            lacking = True
        if lacking:
            what = "this clone is partial: a part" if self._is_partial() else "git is damaged: a part"
            how = "`git fetch --refetch --no-filter` brings it" if self._is_partial() else "`git fsck` says what"
            raise UsageError(f"{what} of its history is not here, and nothing was deleted; {how}")

    def _is_partial(self) -> bool:
        """Whether git leaves objects on a remote until they are asked for."""
        found = self._lines("config", "--get-regexp", r"^(remote\..*\.promisor|extensions\.partialclone)$", default=())
        return bool(found)

    def refs(self) -> dict[str, str]:
        """Everything that has a name: its commit by the full name."""
        found = self._lines("for-each-ref", "--format=%(objecttype)%(*objecttype) %(objectname) %(refname)")
        rows = (line.split(" ", 2) for line in found)
        return {name: commit for kind, commit, name in rows if not kind.endswith("blob")}

    def heads(self) -> Iterator[str]:
        """What is checked out, in every working tree."""
        for line in self._lines("worktree", "list", "--porcelain"):
            word, _, commit = line.partition(" ")
            if word == "HEAD" and commit.strip("0"):  # zeros: nothing is committed yet
                yield commit

    def working_trees(self) -> list[Path]:
        """The top folders of this working tree and of the others that share its repository."""
        [here] = self._lines("rev-parse", "--show-toplevel")
        words = (line.partition(" ") for line in self._lines("worktree", "list", "--porcelain"))
        others = (Path(folder) for word, _, folder in words if word == "worktree")
        return list(dict.fromkeys([Path(here), *(folder for folder in others if (folder / ".git").exists())]))

    def stashed(self, refs: Iterable[str]) -> Iterator[str]:
        """Entries of the stash, and of DVC's stashes for experiments, with the commits that hold their index."""
        for name in refs:
            if name.endswith("/stash"):
                for line in self._lines("log", "-g", "--format=%H %P", name, "--"):
                    yield from line.split()

    def changes(self, head: str) -> Iterator[str]:
        """Commits before `head` in which what is recorded changed, newest first."""
        yield from self._lines("log", "--full-history", "--topo-order", "--format=%H", head, "--", *_RECORDS)

    def records(self, commit: str) -> Iterator[str]:
        """The `dvc.lock` and `.dvc` files in a commit, as blobs."""
        yield from self._blobs(self._root, "ls-tree", "-r", "-z", "--full-tree", commit)

    def indexed(self, folder: Path) -> Iterator[str]:
        """The same in a working tree's index; of a merge that is not done, all sides."""
        yield from self._blobs(folder, "ls-files", "--stage", "-z", "--full-name", ":/")

    def recipes(self, commit: str) -> dict[str | None, str]:
        """The text of each recipe's record in the project's `dvc.lock`; under None what is no recipe's."""
        if commit not in self._recipes:
            text = (self._revisions.read(commit, "dvc.lock") or b"").decode(errors="replace")
            found: dict[str | None, str] = {}
            try:
                for entry in blocks.split(text).get("stages", {}).values():
                    recipe = blocks.recipe_of(entry)
                    found[recipe] = found.get(recipe, "") + entry
            except ValueError:
                found = {None: text}
            self._recipes[commit] = {recipe: self._same.setdefault(record, record) for recipe, record in found.items()}
        return self._recipes[commit]

    def read(self, blob: str) -> bytes:
        """What is in a blob."""
        content = self._revisions.blob(blob)
        if content is None:
            raise StepError(f"git cannot read {blob}; `git fsck` looks for damage, and nothing was deleted")
        return content

    def _blobs(self, folder: Path, *command: str) -> Iterator[str]:
        for row in self._git(folder, *command).split(b"\0"):
            about, _, path = row.partition(b"\t")
            if path.endswith(b".dvc") or path.rsplit(b"/", 1)[-1] == b"dvc.lock":
                yield next(word.decode() for word in about.split() if len(word) >= 40)

    def _lines(self, *command: str, default: Sequence[str] | None = None) -> Sequence[str]:
        try:
            return os.fsdecode(self._git(self._root, *command)).splitlines()
        except StepError:
            if default is None:
                raise
            return default

    def _git(self, folder: Path, *command: str) -> bytes:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise StepError(f"git {command[0]} failed: {reason[-1]}; nothing was deleted")
        return done.stdout


def _named_on_disk(top: Path, cache: Path) -> set[str]:
    """What files in a working tree name, be they committed, ignored or neither; and what links into the cache need."""
    named: set[str] = set()
    folders = [str(top)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    if entry.is_symlink():
                        target = Path(entry.path).resolve()
                        if target.is_relative_to(cache):
                            named.add("".join(target.parts[-2:]))
                    elif entry.is_dir():
                        if entry.name not in _SKIPPED and Path(entry.path) != cache:
                            folders.append(entry.path)
                    elif entry.name == "dvc.lock" or entry.name.endswith(".dvc"):
                        named |= _named_in(Path(entry.path).read_bytes())
        except FileNotFoundError:  # it went while we looked
            continue
        except OSError as error:
            raise StepError(f"{error.filename} cannot be read ({error.strerror}); nothing was deleted") from error
    return named


def _named_in(text: bytes) -> set[str]:
    return {match[1].decode() for match in _MD5.finditer(text)}
