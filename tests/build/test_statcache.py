from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from sdbuild.build import statcache
from sdbuild.build.statcache import StatCache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    for name in ("b.png", "a.png", "sub/c.png", "sub-d.png", "é.png"):
        (data / name).write_bytes(name.encode())
    past = time.time() - 10
    for path in data.rglob("*"):
        os.utime(path, (past, past))
    return data


def cache(root: Path) -> StatCache:
    return StatCache(root, root / "cache.sqlite")


def test_a_folder_has_the_digest_that_dvc_gives_it(folder: Path) -> None:
    from dvc.repo import Repo
    from dvc_data.hashfile.build import build

    repo = Repo.init(str(folder.parent), no_scm=True)
    _, meta, obj = build(repo.cache.local, str(folder), repo.cache.local.fs, "md5", dry_run=True)
    repo.close()
    found = cache(folder.parent).digest("data")
    assert found is not None
    assert (found.md5, found.size, found.files) == (obj.hash_info.value, meta.size, meta.nfiles)


def test_nothing_is_hashed_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache(folder.parent)
    digest = first.digest("data")
    file = first.digest("data/a.png")
    first.close()
    monkeypatch.setattr(statcache, "_md5", lambda entry: pytest.fail(f"{entry.path} hashed again"))
    second = cache(folder.parent)
    assert second.digest("data") == digest
    assert second.digest("data/a.png") == file


def test_only_what_changed_is_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cache(folder.parent)
    before = one.digest("data")
    (folder / "a.png").write_bytes(b"other")
    os.utime(folder / "a.png", (1, 1))
    hashed: list[str] = []
    real = statcache._md5

    def watched(entry: statcache._Entry) -> str:
        hashed.append(entry.relative)
        return real(entry)

    monkeypatch.setattr(statcache, "_md5", watched)
    assert one.digest("data") != before
    assert hashed == ["a.png"]


def test_a_file_just_written_is_not_trusted(tmp_path: Path) -> None:
    one = cache(tmp_path)
    path = tmp_path / "x"
    path.write_bytes(b"1")
    stamp = time.time_ns() + 10**10  # however long this machine takes, it was written just now
    os.utime(path, ns=(stamp, stamp))
    one.digest("x")
    path.write_bytes(b"2")
    os.utime(path, ns=(stamp, stamp))
    found = one.digest("x")
    assert found is not None
    assert found.md5 == hashlib.md5(b"2").hexdigest()


def test_a_damaged_database_is_made_anew(folder: Path) -> None:
    digest = cache(folder.parent).digest("data")
    (folder.parent / "cache.sqlite").write_bytes(b"no database" * 100)
    assert cache(folder.parent).digest("data") == digest


def test_broken_links_have_a_digest_and_missing_paths_none(folder: Path) -> None:
    (folder / "link.png").symlink_to("nowhere")
    one = cache(folder.parent)
    assert one.digest("data") is not None
    assert one.digest("elsewhere") is None
    assert "link.png" in one.listing("data")


def test_what_dvcignore_names_does_not_count(folder: Path) -> None:
    before = cache(folder.parent).digest("data")
    (folder / ".DS_Store").write_text("x")
    assert cache(folder.parent).digest("data") != before
    (folder.parent / ".dvcignore").write_text("# a comment\n.DS_Store\n")
    assert cache(folder.parent).digest("data") == before
