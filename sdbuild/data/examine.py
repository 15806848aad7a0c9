"""Looking at picture files: md5, then pixels, both remembered, both in threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sdbuild.data.listing import ending
from sdbuild.data.masks import ALPHA, treatment
from sdbuild.data.pictures import decode, mask_of, pixel_digest, read_file, read_mask
from sdbuild.data.pixel_budget import PIXEL_BUDGET
from sdbuild.data.pixelcache import Identity, PixelCache, PixelKey, Pixels, identity_of
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
    paths: Iterable[str],
    masks: Mapping[str, str],
    project: Path,
    cache: PixelCache,
    background: str,
    progress: Callable[[int, int], None],
) -> Examined:
    """Find out digest and size of every picture.

    Args:
        paths: posix, relative to `project`.
        masks: path of each picture's mask, or `masks.ALPHA`; see `masks.pair`.
        project: root of the project.
        cache: asked first, and told what is new, also when the run is interrupted.
        background: colour under transparent pixels.
        progress: called with how many are known of how many.
    """
    problems: dict[str, Problem] = {}
    pictures = set(paths)
    files = {path: mask for path, mask in masks.items() if mask != ALPHA}
    identities = dict(_identities(sorted({*pictures, *files.values()}), project, problems))
    md5s = _md5s(identities, project, cache, problems)
    for path, mask in files.items():
        if mask in problems:
            problems[path] = Problem(file=path, message=f"its mask {mask} {problems[mask].message}")
    keys = {
        path: (md5s[path], treatment(background, masks.get(path), md5s))
        for path in md5s
        if path in pictures and path not in problems
    }
    known = cache.pixels(keys.values())
    sharing: dict[tuple[PixelKey, str], list[str]] = {}  # by ending too, which messages name
    for path, key in keys.items():
        if key not in known:
            sharing.setdefault((key, ending(path)), []).append(path)
    total, todo = len(keys), len(sharing)
    progress(total - todo, total)
    fresh: dict[PixelKey, Pixels] = {}

    def look(paths: Sequence[str]) -> tuple[PixelKey, Pixels] | Problem:
        return _look(paths[0], masks.get(paths[0]), project, background)

    try:
        for number, (same, result) in enumerate(_in_threads(look, sorted(sharing.values())), start=1):
            if isinstance(result, Problem):
                problems.update((path, replace(result, file=path)) for path in same)
            else:
                key, fresh[key] = result[0], result[1]
                keys.update((path, key) for path in same)
                md5s.update((path, key[0]) for path in same)
            progress(total - todo + number, total)
    finally:
        cache.record({identities[path]: md5 for path, md5 in md5s.items()}, fresh)
    known |= fresh
    pixels = {path: known[key] for path, key in keys.items() if path not in problems}
    return Examined(pixels=pixels, problems=problems, decoded=todo)


def _look(path: str, mask: str | None, project: Path, background: str) -> tuple[PixelKey, Pixels] | Problem:
    """Decode a picture and its mask; the key is that of the bytes that were read."""
    with PIXEL_BUDGET.held():
        return _looked(path, mask, project, background)


def _looked(path: str, mask: str | None, project: Path, background: str) -> tuple[PixelKey, Pixels] | Problem:
    mask_data: bytes | None = None
    md5s: dict[str, str] = {}
    try:
        data = read_file(project / path, path)
        picture = decode(data, background=background, name=path)
        if mask is not None and mask != ALPHA:
            mask_data = read_mask(project, path, mask)
            md5s[mask] = _md5(mask_data)
        counts = mask_of(picture, mask, mask_data, name=path)
    except DataError as error:
        return error.problems[0]
    image = picture.image
    pixels = Pixels(pixel_digest(image, counts), image.width, image.height, picture.frames_dropped)
    return (_md5(data), treatment(background, mask, md5s)), pixels


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
