"""`sdbuild why FILE`: what an adapter was made from, and how it comes back."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sdbuild.build.cache import LocalCache
from sdbuild.build.project import Project
from sdbuild.build.revisions import Revisions
from sdbuild.families.digest import base_digest, md5_file
from sdbuild.plan import compile
from sdbuild.recipe.places import BASES
from sdbuild.report.provenance import provenance
from sdbuild.report.states import States
from sdbuild.training.tensorfile import write_tensors
from tests.conftest import Work

ADAPTER = "build/cat/adapter/cat.safetensors"


def clone(work: Work, folder: Path) -> Work:
    copy = Work(folder)
    work.git("clone", "--quiet", str(work.root), str(folder))
    shutil.copytree(work.root / "base", folder / "base")  # no part of the repository
    return copy


def commands(shown: str) -> list[list[str]]:
    """What `why` says to type."""
    lines = shown.split("to have it back\n")[1].splitlines()
    return [shlex.split(line) for line in lines if line.startswith("  ")]


def follow(work: Work, shown: str) -> str:
    tools = {"sdbuild": work.sdbuild, "doit": work.doit, "dvc": work.dvc, "git": work.git}
    return "".join(tools[words[0]](*words[1:]).out for words in commands(shown))


@pytest.fixture
def lost(told: Work, tmp_path: Path) -> Path:
    """The adapter of the first commit, copied out of the project, which has gone on since."""
    with Revisions(told.root) as revisions:
        adapter = States(Project(told.root), revisions).at("HEAD~1")["cat"].out("adapter")
    cache = LocalCache(Project(told.root))
    files = cache.files(adapter or "")
    assert files is not None
    target = tmp_path / "downloads" / "found.safetensors"
    target.parent.mkdir()
    shutil.copyfile(cache.path(files["cat.safetensors"]), target)
    return target


def test_a_file_alone(lost: Path) -> None:
    shown = Work(lost.parent).sdbuild("why", "found.safetensors").out
    for words in (
        "found.safetensors is an adapter of the recipe cat, made by sdbuild ",
        "  pictures: 3, and 1 held out",
        "  data digest: ",
        "  base digest: ",
        "torch ",
        "  train.learning_rate: 0.001",
        "  method.rank: 2",
        '  resolution: "32x32"',
        "outside a project, its commit is not known",
    ):
        assert words in shown


def test_the_commands_bring_the_bytes_back_from_a_remote(told: Work, lost: Path, tmp_path: Path) -> None:
    last = shutil.copyfile(told.root / ADAPTER, lost.parent / "last.safetensors")
    told.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    told.git("commit", "--quiet", "--all", "--amend", "-m", "Slower, and a remote")
    told.sdbuild("push")
    mate = clone(told, tmp_path / "clone")
    for file, revision, tools in (
        (lost, "HEAD~1", ["sdbuild", "git", "dvc", "doit"]),  # the remote is younger than the commit
        (last, "HEAD", ["git", "sdbuild", "doit"]),
    ):
        shown = mate.sdbuild("why", str(file)).out
        made = told.git("rev-parse", "--short", revision).out.strip()
        assert f"made by commit {made} of 20" in shown
        assert ": the same bytes" in shown
        assert "  base: model base" in shown
        assert [words[0] for words in commands(shown)] == tools
        assert "done:" not in follow(mate, shown), "nothing is trained"
        assert mate.read(ADAPTER) == file.read_bytes()


def test_the_commands_bring_the_bytes_back_without_a_remote(told: Work, lost: Path) -> None:
    shown = told.sdbuild("why", str(lost)).out
    assert "  now train.learning_rate: 0.001 -> 0.0005" in shown
    assert [words[0] for words in commands(shown)] == ["git", "dvc", "doit"]
    assert "done:" not in follow(told, shown), "nothing is trained"
    assert told.read(ADAPTER) == lost.read_bytes()
    assert told.git("status", "--porcelain").out == ""
    told.git("switch", "--quiet", "-")


def test_where_nothing_is_cached_the_commands_train_the_same_bytes(built: Work, tmp_path: Path) -> None:
    file = shutil.copyfile(built.root / ADAPTER, tmp_path / "found.safetensors")
    mate = clone(built, tmp_path / "clone")
    shown = mate.sdbuild("why", str(file)).out
    assert "was built with these settings; its adapter is not here to compare" in shown
    assert [words[0] for words in commands(shown)] == ["git", "doit"]
    assert "cat:train  done: 4 of 4" in follow(mate, shown)
    assert mate.read(ADAPTER) == file.read_bytes()


def test_an_adapter_of_an_older_sdbuild_is_checked_out(told: Work, lost: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build would make it anew: `doit` is not what brings it back."""
    monkeypatch.setattr(compile, "VERSIONS", {**compile.VERSIONS, "train": 99})
    shown = "\n".join(provenance(lost, Project(told.root)))
    assert commands(shown)[-1] == ["dvc", "checkout", "build/cat/adapter"]
    follow(told, shown)
    assert told.read(ADAPTER) == lost.read_bytes()


def test_what_is_not_committed_other_bytes_and_other_projects(told: Work, lost: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    file.write_bytes(lost.read_bytes()[:-1] + b"\x01")
    assert "was built with these settings, but gave other bytes" in told.sdbuild("why", str(file)).out
    told.git("update-ref", "-d", "HEAD")
    shown = told.sdbuild("why", ADAPTER).out
    assert "made by what is built here and not committed: the same bytes" in shown
    assert "git commit" in shown
    assert "no commit of this project made it" in told.sdbuild("why", str(lost)).out
    assert "is an adapter" in Work(tmp_path).sdbuild("why", "--project", str(told.root), str(lost)).out
    shutil.rmtree(told.root / ".git")
    assert "its commit is not known" in told.sdbuild("why", str(lost)).out
    assert "is not in an sdbuild project" in Work(tmp_path).sdbuild("why", "--project", "/", str(lost), code=3).err


def test_files_of_other_tools(tmp_path: Path) -> None:
    work, path = Work(tmp_path), tmp_path / "theirs.safetensors"
    said = {"ss_network_dim": "8", "ss_tag_frequency": "x" * 500, "evil": "\x1b[2J\nline"}
    write_tensors(path, {"a": torch.zeros(3)}, said)
    shown = work.sdbuild("why", path.name).out
    assert shown.splitlines()[0] == "theirs.safetensors was not made by sdbuild"
    assert "  1 tensors with 3 numbers (F32)" in shown
    assert "  ss_network_dim: 8" in shown
    assert "(500 letters)" in shown
    assert "  evil: \\x1b[2J\\nline" in shown
    write_tensors(path, {"a": torch.zeros(3)}, {"sdbuild.recipe": "old", "sdbuild.spec": "{", "ss_seed": "7"})
    shown = work.sdbuild("why", path.name).out
    assert "is an adapter of the recipe old, made by sdbuild unknown" in shown
    assert '  ss_seed: "7"' in shown
    write_tensors(path, {"a": torch.zeros(3)}, {})
    assert "its header says nothing more" in work.sdbuild("why", path.name).out


def test_an_embedded_base_is_known_by_its_content(tmp_path: Path) -> None:
    digest = base_digest(BASES / "emoji-64", compile.trained_components({"denoiser"}), md5_file)
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, {"sdbuild.recipe": "cat", "sdbuild.base_digest": digest})
    assert f"  base digest: {digest} (emoji-64, embedded)" in list(provenance(path, None))


def test_what_is_no_adapter(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.write("a.safetensors", b"PK\x03\x04 and so on")
    assert work.sdbuild("why", "a.safetensors", code=2).err.startswith("a.safetensors: is no safetensors file")
    assert "there is no such file" in work.sdbuild("why", "b.safetensors", code=3).err
    assert "is a folder; name a file in it" in work.sdbuild("why", str(tmp_path), code=3).err
