"""Files are whole or not there, also where a rename cannot reach."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sdbuild.storage.atomic import remove, renamed_to, replace, write_atomic


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders between which nothing can be renamed, as on two disks."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    rename = os.replace

    def guarded(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", guarded)
    return one, other


def test_moves_to_another_disk(apart: tuple[Path, Path]) -> None:
    one, other = apart
    (one / "a").write_text("new")
    (other / "a").write_text("old")
    replace(one / "a", other / "a")
    (one / "folder" / "inner").mkdir(parents=True)
    (one / "folder" / "inner" / "b").write_text("b")
    (one / "folder" / "link").symlink_to("inner/b")
    replace(one / "folder", other / "folder")
    assert (other / "a").read_text() == "new"
    assert (other / "folder" / "inner" / "b").read_text() == "b"
    assert (other / "folder" / "link").is_symlink()
    assert not any(one.iterdir())
    assert {path.name for path in other.iterdir()} == {"a", "folder"}, "no temporary names are left"


def test_a_copy_that_fails_leaves_both_as_they_were(apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = apart
    (one / "a").write_text("new")
    (other / "a").write_text("old")

    def full(source: Path, target: Path, **_: object) -> None:
        Path(target).write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space left"):
        replace(one / "a", other / "a")
    assert [(one / "a").read_text(), (other / "a").read_text()] == ["new", "old"]
    assert {path.name for path in other.iterdir()} == {"a"}


def test_writes_whole_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a", "one")
    with pytest.raises(TypeError), renamed_to(tmp_path / "new" / "a") as temporary:
        temporary.write_bytes("not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "new" / "a").read_text() == "one"
    assert len(list((tmp_path / "new").iterdir())) == 1
    remove(tmp_path / "new")
    remove(tmp_path / "new")
    assert not (tmp_path / "new").exists()
