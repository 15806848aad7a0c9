"""The DVC remote that a team shares: its objects and its run-cache.

Storage libraries raise what they like and wait as long as they like. Here each question is asked in a thread that may
be left behind, and whatever goes wrong is one `RemoteError` of one line, in which no secret stands. Objects arrive
before the entries of the run-cache that name them, and files before the list of their folder, so that a transfer that
is cut short leaves nothing that names what is not there; the next one goes on from it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from dvc.exceptions import DvcException
from fsspec.callbacks import Callback

from sdbuild.build.cache import MOST_OF_RUN, RUN_NAME, LocalCache
from sdbuild.errors import RemoteError, UsageError
from sdbuild.storage.regular_files import special_at
from sdbuild.storage.safe_paths import is_md5

Answer = TypeVar("Answer")
Show = Callable[[int, int], None]
"""Told how many files have been transferred, of how many."""

_PATIENCE = 120.0
"""Seconds without a sign of life after which a transfer is given up; `read_timeout` of the remote shortens it."""
_SHORT_PATIENCE = 20.0
"""The same for a question that a build asks on its way."""
_OPENING = 60.0
"""Seconds in which the storage library has to be ready."""
_AT_ONCE = 256
"""Entries of the run-cache that are read together."""
_LONGEST = 300
"""Letters of a message."""
_PREFIXED = ("s3", "gs", "azure")
"""Storage that lists by prefix: one request says what is below a folder, or that there is none."""
_WITHOUT_RUNS = ("http", "https")
"""Storage that cannot be listed and therefore keeps no run-cache."""
_HARMLESS = frozenset({"url", "endpointurl", "region", "profile", "jobs", "verify", "user", "port", "timeout"})
"""Settings of a remote that may stand in messages; all others are taken for secrets."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a transfer moved."""

    files: int = 0
    size: int = 0
    """Bytes."""

    def __add__(self, other: Transferred) -> Transferred:
        return Transferred(self.files + other.files, self.size + other.size)


class Remote:
    """The default remote of a project."""

    def __init__(self, repo: Any, cache: LocalCache) -> None:
        self._repo = repo
        self._cache = cache
        self._settings: Mapping[str, Any] = {}
        self._opened: Any = None
        self.name = str(repo.config["core"].get("remote") or "")
        if not self.name:
            known = sorted(repo.config["remote"])
            default = f"dvc remote default {known[0]}" if known else "dvc remote add --default NAME URL"
            raise UsageError(f"no default remote is configured; `{default}` sets it")
        self._settings = repo.config["remote"].get(self.name, {})

    def runs(self, key: str | None = None) -> set[str]:
        """Names of the entries in the remote's run-cache, as `LocalCache.runs` has them; those of one key, or all."""
        return self._ask(lambda _: self._list(key), _SHORT_PATIENCE if key else _PATIENCE)

    def read_runs(self, names: Collection[str], show: Show | None = None) -> dict[str, bytes]:
        """Entries of the run-cache, without those that are too large to be any."""

        def fetch(signs: _Signs) -> dict[str, bytes]:
            paths = {path: name for name in sorted(names) if self._is_content(path := self._run_path(name))}
            found: dict[str, bytes] = {}
            for some in _batches(paths, _AT_ONCE):
                sizes = self._remote.fs.info(list(some), batch_size=self._remote.fs.jobs)
                read = [path for path, about in zip(some, sizes, strict=True) if about["size"] <= MOST_OF_RUN]
                contents = self._remote.fs.cat(read) if read else {}
                found.update((paths[path], content) for path, content in contents.items())
                signs.relative_update(len(some))
            return found

        return self._ask(fetch, show=show, total=len(names)) if names else {}

    def write_runs(self, names: Collection[str], show: Show | None = None) -> int:
        """Add entries of the local run-cache, and return how many; what they name has to be there already."""

        def write(signs: _Signs) -> int:
            order = sorted(names)
            if self._remote.fs.protocol in _WITHOUT_RUNS:
                return 0
            sources = [str(self._cache.run_file(name)) for name in order]
            self._copy(sources, [self._run_path(name) for name in order], signs)
            return len(order)

        return self._ask(write, show=show, total=len(names)) if names else 0

    def present(self, md5s: Collection[str]) -> set[str]:
        """Which objects the remote has; one that lists a folder stands for the folder's files."""
        named = {md5 for md5 in md5s if is_md5(md5)}  # others would lead to other places
        return self._ask(lambda signs: self._present(named, signs)) if named else set()

    def upload(self, md5s: Collection[str], show: Show | None = None) -> Transferred:
        """Copy objects of the cache, lists of folders after all files."""

        def send(signs: _Signs) -> None:
            remote = self._remote.odb
            for order in _files_first(md5s):
                paths = [str(self._cache.path(md5)) for md5 in order]
                remote.add(
                    paths,
                    self._repo.cache.local.fs,
                    order,
                    check_exists=False,
                    batch_size=remote.fs.jobs,
                    callback=signs,
                )

        if md5s:
            self._ask(send, show=show, total=len(md5s))
        return self._size(md5s)

    def download(self, md5s: Iterable[str], show: Show | None = None) -> Transferred:
        """Bring objects that the cache lacks, folders with their files, as far as the remote has them."""
        wanted = {md5 for md5 in md5s if not self._cache.has(md5)}
        lists = self.download_single(wanted)
        rows = [(self._cache.files(md5) or {}).values() for md5 in wanted if md5.endswith(".dir")]
        return lists + self.download_single({md5 for row in rows for md5 in row}, show)

    def download_single(self, md5s: Iterable[str], show: Show | None = None) -> Transferred:
        """Bring single objects that the cache lacks, a folder's list without its files; damaged ones stay out."""
        lacking = {md5 for md5 in md5s if is_md5(md5) and not self._cache.path(md5).exists()}
        wanted = self.present(lacking)

        def fetch(signs: _Signs) -> None:
            remote, cache = self._remote.odb, self._repo.cache.local
            for order in _files_first(wanted):
                paths = [remote.oid_to_path(md5) for md5 in order]
                # Without `on_error`: with it, DVC keeps the half of a file that a broken connection left.
                how = {"verify": True, "check_exists": False, "batch_size": remote.fs.jobs, "callback": signs}
                cache.add(paths, remote.fs, order, **how)

        if wanted:
            self._ask(fetch, show=show, total=len(wanted))
        return self._size(md5 for md5 in wanted if self._cache.path(md5).exists())

    def prepare(self) -> None:
        """Make the folder of a remote that is one."""

        def make(_: _Signs) -> None:
            if self._opened.fs.protocol == "local":
                os.makedirs(self._opened.path, exist_ok=True)

        self._ask(make)

    def leave_to_dvc(self, call: Callable[[], Any]) -> None:
        """Let DVC itself talk to its remotes, as long as it takes, with the errors of all questions."""
        self._ask(lambda _: call(), None)

    @property
    def _remote(self) -> Any:
        """DVC's remote; a folder has to be there, or everything would seem to be absent from it."""
        if self._opened.fs.protocol == "local" and not os.path.isdir(self._opened.path):
            raise FileNotFoundError(errno.ENOENT, "no such folder", self._opened.path)
        return self._opened

    def _open(self) -> None:
        remote = self._repo.cloud.get_remote(self.name)
        if remote.worktree or remote.fs.version_aware:
            raise RemoteError(f"remote {self.name}: cloud versioning is on, which has no run-cache; turn it off")
        _ = remote.fs.fs  # imports the storage library and finds credentials
        self._opened = remote

    def _list(self, key: str | None) -> set[str]:
        fs, root = self._remote.fs, self._remote.path
        if fs.protocol in _WITHOUT_RUNS:
            return set()
        if key and fs.protocol in _PREFIXED:
            found = fs.fs.find(fs.join(root, "runs", key[:2]), prefix=f"{key}/")
        else:
            found = fs.find(fs.join(root, "runs", key[:2], key) if key else fs.join(root, "runs"))
        names = ("/".join(fs.parts(path)[-3:]) for path in found)
        return {name for name in names if RUN_NAME.fullmatch(name)}

    def _present(self, md5s: Collection[str], signs: _Signs) -> set[str]:
        remote = self._remote.odb
        md5s = {md5 for md5 in md5s if self._is_content(remote.oid_to_path(md5))}  # others DVC would try to read
        return set(remote.oids_exist(md5s, progress=lambda *_: signs.live()))

    def _is_content(self, path: str) -> bool:
        """Whether it can be read to its end: a pipe or a device in a folder that others write to cannot."""
        return self._remote.fs.protocol != "local" or special_at(path) is None

    def _copy(self, sources: Sequence[str], targets: Sequence[str], signs: _Signs) -> None:
        from dvc_objects.fs.generic import copy

        fs = self._remote.fs
        if fs.protocol not in _PREFIXED:  # which has no folders
            for folder in {fs.parent(path) for path in targets}:
                fs.makedirs(folder)
        copy(self._repo.cache.local.fs, list(sources), fs, list(targets), callback=signs, batch_size=fs.jobs)

    def _run_path(self, name: str) -> str:
        fs = self._remote.fs
        return str(fs.join(self._remote.path, "runs", *name.split("/")))

    def _size(self, md5s: Iterable[str]) -> Transferred:
        sizes = [self._cache.path(md5).stat().st_size for md5 in md5s]
        return Transferred(len(sizes), sum(sizes))

    def _ask(
        self,
        question: Callable[[_Signs], Answer],
        patience: float | None = _PATIENCE,
        *,
        show: Show | None = None,
        total: int = 0,
    ) -> Answer:
        """Ask in a thread; an answer, or a `RemoteError` for whatever went wrong or took too long."""
        if self._opened is None:
            self._wait(lambda _: self._open(), _Signs(None, 0), _OPENING)
        if patience is not None:
            patience = min(patience, float(self._settings.get("read_timeout") or patience))
        return self._wait(question, _Signs(show, total), patience)

    def _wait(self, question: Callable[[_Signs], Answer], signs: _Signs, patience: float | None) -> Answer:
        answers: list[Answer] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def ask() -> None:
            try:
                answers.append(question(signs))
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=ask, name=f"remote {self.name}", daemon=True).start()
        while not done.wait(1 if patience is None else max(0.0, signs.last + patience - time.monotonic())):
            if patience is not None and time.monotonic() - signs.last >= patience:
                signs.silence()
                raise RemoteError(f"remote {self.name}: no answer for {patience:g} s")
        if errors:
            raise self._trouble(errors[0]) from None
        return answers[0]

    def _trouble(self, error: BaseException) -> BaseException:
        if isinstance(error, RemoteError) or not isinstance(error, Exception):
            return error
        return RemoteError(f"remote {self.name}: {scrub(_words(error), self._secrets())}")

    def _secrets(self) -> list[str]:
        own = [value for key, value in self._settings.items() if isinstance(value, str) and key not in _HARMLESS]
        named = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING")
        return own + [value for key, value in os.environ.items() if named.search(key)]


class _Signs(Callback):  # type: ignore[misc]
    """Signs of life of a transfer: files done, and for a running file each piece."""

    def __init__(self, show: Show | None, total: int) -> None:
        super().__init__()
        self.last = time.monotonic()
        self._show = show
        self._total = total
        self._done = 0
        self._mutex = threading.Lock()

    def live(self) -> None:
        """Something has happened."""
        self.last = time.monotonic()

    def silence(self) -> None:
        """Nobody listens any more."""
        self._show = None

    def relative_update(self, inc: int = 1) -> None:
        """So many files more are done."""
        self.live()
        with self._mutex:
            self._done += inc
            if self._show is not None:
                self._show(self._done, self._total)

    def branched(self, path_1: Any, path_2: Any, **kwargs: Any) -> Callback:
        """Signs of one file."""
        return _Pieces(self)


class _Pieces(Callback):  # type: ignore[misc]
    def __init__(self, signs: _Signs) -> None:
        super().__init__()
        self._signs = signs

    def relative_update(self, inc: int = 1) -> None:
        self._signs.live()

    def absolute_update(self, value: int) -> None:
        self._signs.live()


def scrub(text: str, secrets: Iterable[str]) -> str:
    """A message without users and passwords in addresses, signatures of addresses, and known secrets."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1", text)
    text = re.sub(r"(://[^\s?]+)\?[^\s\"']+", r"\1", text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return text


def _words(error: Exception) -> str:
    """One line of what went wrong, as far as the library says it."""
    missing = getattr(error, "missing_deps", None)
    if missing:
        kind = getattr(error, "protocol", "s3")
        return f"{', '.join(missing)} is not installed; `pip install 'dvc[{kind}]'` brings it"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, DvcException) and error.__cause__ is not None:
        text = f"{text}: {_words(error.__cause__)}" if isinstance(error.__cause__, Exception) else text
    text = text.strip().rstrip(".")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """`itertools.batched`, which Python 3.11 lacks."""
    rest = iter(names)
    while some := list(islice(rest, size)):
        yield some


def _files_first(md5s: Iterable[str]) -> list[list[str]]:
    """Objects in the order in which they may be copied: the lists of folders after all files."""
    order = sorted(md5s)
    files, lists = ([md5 for md5 in order if md5.endswith(".dir") == is_list] for is_list in (False, True))
    return [some for some in (files, lists) if some]
