"""DVC's configuration counts at all its levels, as DVC itself reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbuild.build.cache import LocalCache
from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.project import Project
from sdbuild.errors import UsageError
from sdbuild.report.objects import has_remote
from tests.conftest import Work

LEVELS = ("system", "global", "repo", "local")


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The four files, of which none is there."""
    for variable, folder in (("XDG_CONFIG_DIRS", "system"), ("XDG_CONFIG_HOME", "global")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("DVC_SYSTEM_CONFIG_DIR", "DVC_GLOBAL_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    files = (tmp_path / "system/dvc/config", tmp_path / "global/dvc/config", root / ".dvc/config")
    return dict(zip(LEVELS, (*files, root / ".dvc/config.local"), strict=True))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def texts(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Configurations by level, each for all combinations below."""
    yield "relative", "[cache]\n    dir = LEVEL-cache\n[core]\n    remote = LEVEL\n"
    yield "absolute", f"['cache']\ndir = '{tmp_path}/LEVEL'\n[CORE]\nRemote = LEVEL # here\n"
    yield "home", "[cache]\ndir = ~/LEVEL\n"


def test_the_four_levels_are_merged_as_dvc_does(levels: dict[str, Path], tmp_path: Path) -> None:
    from dvc.config import Config

    root = tmp_path / "project"
    for _, text in texts(tmp_path):
        for chosen in range(16):
            for number, (level, file) in enumerate(levels.items()):
                file.unlink(missing_ok=True)
                if chosen >> number & 1:
                    write(file, text.replace("LEVEL", level))
            ours, theirs = DvcConfig(root), Config(str(root / ".dvc"))
            expected = theirs["cache"].get("dir") or str(root / ".dvc/cache")
            assert LocalCache(Project(root)).folder == Path(expected).resolve()
            assert ours.remote == (theirs["core"].get("remote") or "")
            assert has_remote(Project(root)) == bool(ours.remote)


def test_variables_say_where_the_levels_are(
    levels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("system", "global"):
        monkeypatch.setenv(f"DVC_{name.upper()}_CONFIG_DIR", str(tmp_path / f"my-{name}"))
        write(tmp_path / f"my-{name}/config", f"[core]\n    remote = {name}\n")
        assert DvcConfig(tmp_path / "project").remote == name


def test_a_past_configuration_stands_in_for_the_projects_own(levels: dict[str, Path], tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    write(levels["repo"], "[core]\n    remote = now\n")
    assert not has_remote(project, "")
    assert has_remote(project, "[core]\n    remote = then\n")
    write(levels["global"], "[core]\n    remote = mine\n")
    assert has_remote(project, "")


def test_what_cannot_be_read_is_named(levels: dict[str, Path], tmp_path: Path) -> None:
    for file in levels.values():
        for content in (b"[cache\ndir", b"\xff\xfe\x00", b"[cache]\ndir = 'a\n"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            with pytest.raises(UsageError, match="configuration cannot be read") as caught:
                DvcConfig(tmp_path / "project")
            assert str(file) in str(caught.value)
            assert not has_remote(Project(tmp_path / "project"))
        file.unlink()


def test_a_cache_that_the_user_configured_for_all_projects_is_used(work: Work, tmp_path: Path) -> None:
    """The first build of a new project goes into it, and `sdbuild gc` looks there."""
    write(tmp_path / "home/dvc/config", f"[cache]\n    dir = {tmp_path}/shared\n")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "none")}
    assert set(work.doit("cat:captions", env=env).ran) == {"cat:images", "cat:captions"}
    assert len(list((tmp_path / "shared/files/md5").glob("*/*"))) == 2
    assert not (work.root / ".dvc/cache").exists()
    assert work.doit("cat:captions", env=env).ran == {}
    (work.root / "build/cat/captions.jsonl").unlink()
    assert "restored" in work.doit("cat:captions", env=env).out
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "State")
    said = work.run("sdbuild", "gc", code=3, env=env).err
    assert f"the cache {tmp_path}/shared lies outside the project" in said
