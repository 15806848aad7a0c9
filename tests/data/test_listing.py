"""Which files are pictures, and which captions belong to them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sdbuild.data.listing import Sidecars, is_picture, scan, shown


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "b/c.WebP", "x.y.tiff", "猫.avif", "IMG_1.HEIC", "a.jfif", "b.TGA"])
def test_pictures_by_ending(name: str) -> None:
    assert is_picture(name)


@pytest.mark.parametrize("name", ["a.txt", "png", ".png", ".a.png", ".cache/a.png", "__MACOSX/a.png", "a.png.txt"])
def test_not_pictures(name: str) -> None:
    assert not is_picture(name)


def test_scan_walks_and_sorts(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.gif", "sub/c.txt", "a.caption", ".hidden/d.png", "notes.md", "raw.CR2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to("sub")
    listing = scan(tmp_path)
    assert listing.pictures == ("a.JPG", "b.png", "broken.png", "sub/c.gif")
    assert listing.sidecars == ("a.caption", "sub/c.txt")
    assert listing.unread == ("linked", "raw.CR2")
    assert listing.others == ("notes.md",)


def test_sidecars_match_by_stem_or_name() -> None:
    sidecars = Sidecars(["a.txt", "a.png.txt", "b.TXT", "sub/a.caption", "c.d.txt"])
    assert sidecars.of("a.png") == ["a.txt", "a.png.txt"]
    assert sidecars.of("a.jpg") == ["a.txt"]
    assert sidecars.of("b.png") == ["b.TXT"]
    assert sidecars.of("sub/a.png") == ["sub/a.caption"]
    assert sidecars.of("c.d.png") == ["c.d.txt"]
    assert sidecars.of("c.png") == []


def test_sidecars_match_across_unicode_forms() -> None:
    composed, split = "é.png", unicodedata.normalize("NFD", "é.txt")
    assert Sidecars([split]).of(composed) == [split]


def test_shown_is_relative_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert shown(tmp_path / "in" / "a") == "a"
    assert shown(tmp_path / "a") == str(tmp_path / "a")
