"""Digest of the parts of a base that a step reads, wherever the base lies. Light."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdbuild import families
from sdbuild.errors import DataError, Problem
from sdbuild.families.description import PARTS
from sdbuild.families.layout import component_files
from sdbuild.storage.regular_files import special_at


def base_digest(folder: Path, components: Iterable[str], hash_file: Callable[[Path], str]) -> str:
    """Digest the weights, configurations and vocabularies of some components.

    Args:
        folder: of the base.
        components: sub-folders, single files as ``vae/config.json``, or parts as ``text``, which each family has in
            components of its own; order and repeats do not matter.
        hash_file: digest of a file's content; called once a file.

    Returns:
        Sha256 (hex) of the files' relative paths and digests.

    Raises:
        DataError: a component is not there.
    """
    digest = hashlib.sha256()
    files: set[Path] = set()
    for component in _components(folder, components):
        found = component_files(folder, component)
        if not found:
            raise DataError([Problem(file=str(folder / component), message="is missing; the base is incomplete")])
        files.update(found)
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        digest.update(f"{name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def _components(folder: Path, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in PARTS:
            yield from families.components(folder, [name])
        else:
            yield name


def md5_file(path: Path) -> str:
    """Hash a file's content as DVC does."""
    if kind := special_at(path):
        raise DataError([Problem(file=str(path), message=f"is {kind}, where a file should be; delete it")])
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read_digest(spec: Mapping[str, Any], folder: Path, components: Iterable[str]) -> str:
    """Take the base's digest from a step's spec, where the oracle wrote it, or compute the same one."""
    recorded: str | None = spec.get("reads", {}).get("base")
    return recorded if recorded is not None else base_digest(folder, components, md5_file)
