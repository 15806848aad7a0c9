"""Pipes, sockets and devices are told and never opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sdbuild.storage.regular_files import SpecialFileError, find_special, read_regular, special_at


def test_special_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("a")
    (tmp_path / "circle").symlink_to(".")
    (tmp_path / "nowhere").symlink_to("absent")
    os.mkfifo(tmp_path / "inner" / "pipe")
    (tmp_path / "to-pipe").symlink_to("inner/pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        found = {path.relative_to(tmp_path).as_posix(): kind for path, kind in find_special(tmp_path)}
    pipe = "a named pipe"
    assert found == {"inner/pipe": pipe, "to-pipe": pipe, "zero": "a device", "socket": "a socket"}
    assert list(find_special(tmp_path / "absent")) == []
    assert list(find_special(tmp_path / "inner", [tmp_path / "inner"])) != []
    assert special_at(tmp_path / "nowhere") is None
    assert read_regular(tmp_path / "inner" / "file") == b"a"
    for name in found:
        with pytest.raises(SpecialFileError, match="not a file"):
            read_regular(tmp_path / name)
