"""Which files of a dataset folder are pictures, and which are captions beside them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdbuild.storage.regular_files import special_at

PICTURES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".webp", ".bmp", ".dib", ".gif"),
        *(".tif", ".tiff", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
        *(".heic", ".heif", ".hif", ".jxl"),
    }
)
"""Endings of files that are read as pictures, lower case; some formats need an extra, see `formats`."""

SIDECARS = (".txt", ".caption")
"""Endings of caption files that lie beside their picture."""

UNREAD = frozenset(
    {
        *(".psd", ".psb", ".xcf", ".kra", ".clip", ".svg", ".svgz", ".eps", ".ai", ".pdf", ".ico", ".icns", ".cur"),
        *(".exr", ".hdr", ".pfm", ".pam", ".qoi", ".pcx", ".dds", ".jxr", ".wdp", ".bpg", ".wmf", ".emf", ".fits"),
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf"),
        *(".pef", ".srw", ".x3f", ".rwl", ".3fr", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".gpr"),
    }
)
"""Endings of pictures in formats that are not read; worth a word, as they would be missed."""


def no_pictures() -> str:
    """What to say of a dataset without any."""
    return f"holds no pictures; put some there ({', '.join(sorted(PICTURES))})"


def ending(name: str) -> str:
    """The ending of a file name in lower case, with its dot; empty for none."""
    return os.path.splitext(name)[1].lower()


def is_hidden(relative: str) -> bool:
    """Whether the path or one of its folders starts with a dot, as editors' and systems' leftovers do."""
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.split("/"))


def is_picture(relative: str) -> bool:
    """Whether a file of a dataset, by its path relative to the folder, is read as a picture."""
    return ending(relative) in PICTURES and not is_hidden(relative)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Files of a dataset folder, as sorted posix paths relative to it."""

    pictures: tuple[str, ...]
    sidecars: tuple[str, ...]
    unread: tuple[str, ...]
    """Pictures in formats that are not read, links to folders, which are not followed, and pipes, sockets, devices."""
    others: tuple[str, ...] = ()
    """Files of other endings, or of none."""


def scan(folder: Path) -> Listing:
    """List a dataset folder with its sub-folders; links to files are files, links to folders are not followed.

    Pipes, sockets and devices are no files, whatever their names end in.

    Raises:
        OSError: the folder or one of its sub-folders cannot be listed.
    """
    pictures: list[str] = []
    sidecars: list[str] = []
    unread: list[str] = []
    others: list[str] = []
    for relative, is_file in _walk(folder):
        kind = ending(relative)
        if not is_file:
            unread.append(relative)
        elif kind in PICTURES:
            pictures.append(relative)
        elif kind in SIDECARS:
            sidecars.append(relative)
        elif kind in UNREAD:
            unread.append(relative)
        else:
            others.append(relative)
    found = (tuple(sorted(paths)) for paths in (pictures, sidecars, unread, others))
    return Listing(**dict(zip(("pictures", "sidecars", "unread", "others"), found, strict=True)))


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield visible files and links with whether they count as files; folders are walked."""
    folders: list[str] = []
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            relative = prefix + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(relative + "/")
            else:
                is_file = entry.is_file(follow_symlinks=False)
                yield relative, is_file or not (entry.is_dir() or special_at(entry.path))
    for relative in sorted(folders):
        yield from _walk(folder, relative)


class Sidecars:
    """Finds the caption files of a picture: `a.txt`, `a.caption` or `a.png.txt` for `a.png`.

    Names are compared in Unicode's NFC form, because archives made on macOS hold NFD names.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for path in sorted(paths):
            self._by_stem.setdefault(nfc(os.path.splitext(path)[0]), []).append(path)

    def of(self, picture: str) -> list[str]:
        """Sidecars of a picture, paths relative to the same folder."""
        name = nfc(picture)
        return [*self._by_stem.get(os.path.splitext(name)[0], ()), *self._by_stem.get(name, ())]


def nfc(text: str) -> str:
    """The text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def relative_to(path: str, folder: str) -> str:
    """A project path relative to its dataset's folder; both posix, as rows of `images.jsonl` have them."""
    assert path.startswith(f"{folder}/"), (path, folder)
    return path[len(folder) + 1 :]


def shown(path: Path) -> str:
    """How a message names a file: relative to the working directory when it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
