"""Masks of pictures: where each one comes from, and what a masked picture's pixels are remembered by. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os.path import splitext
from typing import Any

from sdbuild.data.listing import nfc
from sdbuild.data.pixelcache import PixelKey

ALPHA = "alpha"
"""In the place of a mask's path: the picture's own transparency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """The picture files of a dataset, told apart from masks; paths are relative to its folder."""

    pictures: tuple[str, ...]
    masks: Mapping[str, str]
    """Path of each picture's mask, or `ALPHA`; pictures without a mask are not in it."""
    twice: tuple[str, ...] = ()
    """Masks of pictures that have another one already."""
    alone: tuple[str, ...] = ()
    """Masks of which there is no picture."""


def pair(paths: Iterable[str], spec: Mapping[str, Any] | None) -> Paired:
    """Tell pictures and masks apart.

    Args:
        paths: sorted picture files of a dataset, relative to its folder.
        spec: the dataset's `mask`; None for one without masks.
    """
    paths = tuple(paths)
    if spec is None:
        return Paired(pictures=paths, masks={})
    if spec["from"] == ALPHA:
        return Paired(pictures=paths, masks=dict.fromkeys(paths, ALPHA))
    found: dict[str, list[str]] = {}
    pictures = []
    for path in paths:
        stem = _masked_stem(path, spec)
        if stem is None:
            pictures.append(path)
        else:
            found.setdefault(stem, []).append(path)
    stems = {path: nfc(splitext(path)[0]) for path in pictures}
    known = set(stems.values())
    return Paired(
        pictures=tuple(pictures),
        masks={path: found[stem][0] for path, stem in stems.items() if stem in found},
        twice=tuple(mask for stem, masks in found.items() if stem in known for mask in masks[1:]),
        alone=tuple(mask for stem, masks in found.items() if stem not in known for mask in masks),
    )


def treatment(background: str, mask: str | None, md5s: Mapping[str, str]) -> str:
    """Under what pixels are remembered beside their file's md5: all else that their digest depends on.

    Args:
        background: colour under transparent pixels.
        mask: path of the picture's mask, `ALPHA` or None.
        md5s: of masks, by path.
    """
    if mask is None:
        return background
    return f"{background} {ALPHA}" if mask == ALPHA else f"{background} mask {md5s[mask]}"


def pixel_keys(listing: Mapping[str, str], spec: Mapping[str, Any] | None, background: str) -> Iterator[PixelKey]:
    """Yield what the pixels of a dataset's pictures are remembered by, from the md5s of its picture files."""
    paired = pair(sorted(listing), spec)
    for path in paired.pictures:
        yield listing[path], treatment(background, paired.masks.get(path), listing)


def _masked_stem(path: str, spec: Mapping[str, Any]) -> str | None:
    """Path without ending of the picture whose mask this is by its name; None for a picture."""
    stem = nfc(splitext(path)[0])
    if spec["from"] == "folder":
        prefix = nfc(f"{spec['folder']}/")
        return stem.removeprefix(prefix) if stem.startswith(prefix) else None
    suffix = nfc(spec["suffix"])
    picture = stem.removesuffix(suffix)
    return picture if stem.endswith(suffix) and picture and not picture.endswith("/") else None
