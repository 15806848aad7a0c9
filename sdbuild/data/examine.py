"""Looking at picture files: md5, then pixels, both remembered, both in threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sdbuild.data.pictures import decode, pixel_digest, read_file
from sdbuild.data.pixelcache import Identity, PixelCache, Pixels, identity_of
from sdbuild.errors import DataError, Problem

THREADS = 8
"""At most; a thread holds one decoded picture."""

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What became of the files."""

    pixels: dict[str, Pixels]
    """By path, of those that are whole."""
    problems: dict[str, Problem]
    """By path, of the others."""
    decoded: int
    """How many had to be decoded: files of the same bytes count once, remembered ones not at all."""


def examine(
    paths: Iterable[str], project: Path, cache: PixelCache, background: str, progress: Callable[[int, int], None]
) -> Examined:
    """Find out digest and size of every picture.

    Args:
        paths: posix, relative to `project`.
        project: root of the project.
        cache: asked first, and told what is new, also when the run is interrupted.
        background: colour under transparent pixels.
        progress: called with how many are known of how many.
    """
    problems: dict[str, Problem] = {}
    identities = dict(_identities(sorted(set(paths)), project, problems))
    md5s = _md5s(identities, project, cache, problems)
    known = cache.pixels(md5s.values(), background)
    sharing: dict[str, list[str]] = {}
    for path, md5 in md5s.items():
        if md5 not in known:
            sharing.setdefault(md5, []).append(path)
    total, todo = len(md5s), len(sharing)
    progress(total - todo, total)
    fresh: dict[str, Pixels] = {}

    def look(paths: Sequence[str]) -> tuple[str, Pixels] | Problem:
        try:
            data = read_file(project / paths[0], paths[0])
            picture = decode(data, background=background, name=paths[0])
        except DataError as error:
            return error.problems[0]
        image = picture.image
        return _md5(data), Pixels(pixel_digest(image), image.width, image.height, picture.frames_dropped)

    try:
        for number, (same, result) in enumerate(_in_threads(look, sorted(sharing.values())), start=1):
            if isinstance(result, Problem):
                problems.update((path, replace(result, file=path)) for path in same)
            else:
                md5, fresh[md5] = result[0], result[1]
                md5s.update((path, md5) for path in same)
            progress(total - todo + number, total)
    finally:
        cache.record({identities[path]: md5 for path, md5 in md5s.items()}, fresh, background)
    known |= fresh
    pixels = {path: known[md5] for path, md5 in md5s.items() if path not in problems}
    return Examined(pixels=pixels, problems=problems, decoded=todo)


def _identities(paths: Iterable[str], project: Path, problems: dict[str, Problem]) -> Iterator[tuple[str, Identity]]:
    for path in paths:
        printable = path.encode("utf-8", "backslashreplace").decode()
        if printable != path:
            problems[path] = Problem(file=printable, message="its name is not valid Unicode; rename it")
            continue
        try:
            yield path, identity_of((project / path).stat())
        except OSError:
            try:
                read_file(project / path, path)
            except DataError as error:  # knows what is wrong
                problems[path] = error.problems[0]


def _md5s(
    identities: dict[str, Identity], project: Path, cache: PixelCache, problems: dict[str, Problem]
) -> dict[str, str]:
    def read(path: str) -> str | Problem:
        try:
            return _md5(read_file(project / path, path))
        except DataError as error:
            return error.problems[0]

    known = cache.md5s(identities.values())
    md5s = {path: known[identity] for path, identity in identities.items() if identity in known}
    for path, md5 in _in_threads(read, (path for path in identities if path not in md5s)):
        if isinstance(md5, Problem):
            problems[path] = md5
        else:
            md5s[path] = md5
    return md5s


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _in_threads(function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[tuple[A, R]]:
    """Call in threads (reading and decoding let others run) and yield arguments with results, in order."""
    ordered = list(arguments)
    if not ordered:
        return
    pool = ThreadPoolExecutor(min(THREADS, (os.cpu_count() or 1) + 1))
    try:
        yield from zip(ordered, pool.map(function, ordered), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
