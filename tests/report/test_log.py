"""`sdbuild log` through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdbuild.build.project import Project
from sdbuild.build.revisions import Revisions
from sdbuild.errors import UsageError
from sdbuild.report.log import _when, log
from tests.conftest import Work, environment
from tests.report.conftest import CATS


def states(work: Work, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(work.sdbuild("log", "--json", *arguments).out)["states"]
    return found


def test_each_state_with_what_changed(told: Work) -> None:
    shown = told.sdbuild("log").out
    head, first = told.git("log", "--format=%h").out.split()
    for words in (
        "Slower\\x1b[31m",
        "pictures +1 ~1 (1 renamed)",
        "captions ~1",
        "train.learning_rate: 0.001 -> 0.0005",
        "validation_loss.adapter: 0.",
        "first built",
        "pictures +4",
    ):
        assert words in shown
    assert shown.index(head) < shown.index("captions ~1") < shown.index(first) < shown.index("first built")
    assert "\x1b" not in shown
    assert "not committed" not in shown

    newer, older = states(told, "cat")
    assert newer["author"] == "A"
    assert newer["commit"] == told.git("rev-parse", "HEAD").out.strip()
    assert newer["changes"]["pictures"] == {
        "added": [f"{CATS}/new.png"],
        "removed": [],
        "changed": [f"{CATS}/0001.png"],
        "renamed": [[f"{CATS}/0003.png", f"{CATS}/moved.png"]],
    }
    [caption] = newer["changes"]["captions"]
    assert caption["path"] == f"{CATS}/0000.png"
    assert caption["old"] == "sks a red cat"
    assert newer["changes"]["settings"] == {"train.learning_rate": {"old": 0.001, "new": 0.0005}}
    assert newer["changes"]["metrics"]["pictures"] == {"old": 3, "new": 4}
    assert newer["metrics"] == json.loads(told.read("build/cat/metrics.json"))
    assert older["changes"]["event"] == "added"
    assert older["metrics"]["steps"] == 4


def test_what_is_not_a_change_is_not_listed(told: Work) -> None:
    told.write("notes.md", "words")
    told.write("dvc.lock", told.read("dvc.lock") + b"# a comment\n")
    told.git("add", ".")
    told.git("commit", "--quiet", "-m", "Notes")
    assert [state["subject"] for state in states(told)] == ["Slower\x1b[31m", "Build"]
    assert len(states(told, "-n", "1")) == 1
    assert "0 is less than 1" in told.sdbuild("log", "-n", "0", code=3).err


def test_settings_are_those_that_were_built(told: Work) -> None:
    """A recipe is edited, another one is built and committed, and the first is built later."""
    told.recipe(train={"learning_rate": 5e-4}, method={"rank": 3})
    told.recipe("dog")
    told.doit("dog:images")
    told.git("add", ".")
    told.git("commit", "--quiet", "-m", "Another")
    assert states(told, "-n", "1", "cat")[0]["subject"] == "Slower\x1b[31m"
    told.doit("cat:train")
    told.git("add", ".")
    told.git("commit", "--quiet", "-m", "Rank")
    newest = states(told, "-n", "1", "cat")[0]
    assert newest["subject"] == "Rank"
    assert newest["changes"]["settings"] == {"method.rank": {"old": 2, "new": 3}}


def test_states_that_are_not_committed_merges_and_ends(told: Work) -> None:
    """What another build left in `dvc.lock` counts, whoever wrote it."""
    lock = told.read("dvc.lock")
    other = lock.replace(b"build/cat/", b"build/dog/").replace(b"step cat:", b"step dog:").replace(b"cat-", b"dog-")
    other = other.split(b"stages:\n", 1)[1]
    told.git("switch", "--quiet", "--create", "dogs")
    told.write("dvc.lock", lock + other)
    told.git("commit", "--quiet", "--all", "-m", "Dog")
    told.git("switch", "--quiet", "main")
    told.write("dvc.lock", b"schema: '2.0'\nstages: {}\n")
    assert [state["changes"]["event"] for state in states(told)][:1] == ["removed"]
    assert "not committed" in told.sdbuild("log", "cat").out
    told.git("commit", "--quiet", "--all", "-m", "No cat")
    told.git("merge", "--quiet", "--strategy=ours", "-m", "Ours", "dogs")
    told.write("dvc.lock", b"schema: '2.0'\nstages:\n" + other)
    told.git("commit", "--quiet", "--all", "--amend", "-m", "Both")
    found = [(state["subject"], state["changes"]["recipe"], state["changes"]["event"]) for state in states(told)]
    assert ("Dog", "dog", "added") in found
    assert ("No cat", "cat", "removed") in found
    assert "Both" not in [subject for subject, *_ in found]
    assert {recipe for _, recipe, _ in found} == {"cat", "dog"}


def test_a_recipe_that_never_was(built: Work) -> None:
    assert (
        built.sdbuild("log", "cta", code=3).err == "no recipe cta in the history of this branch (did you mean cat?)\n"
    )


def test_objects_that_are_not_here(told: Work) -> None:
    shutil.rmtree(told.root / ".dvc/cache/files")
    shown = told.sdbuild("log").out
    assert "not here: pictures, captions, metrics; `sdbuild pull` brings it" in shown
    assert "train.learning_rate: 0.001 -> 0.0005" in shown
    newest = states(told)[0]
    assert newest["changes"]["pictures"] is None
    assert newest["changes"]["captions"] is None
    assert newest["metrics"] is None


def test_small_objects_are_fetched_from_the_remote(told: Work, tmp_path: Path) -> None:
    told.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    shutil.copytree(told.root / ".dvc/cache/files", tmp_path / "store/files")
    shutil.rmtree(told.root / ".dvc/cache/files")
    assert "pictures +1 ~1 (1 renamed)" in told.sdbuild("log").out
    kept = [path for path in (told.root / ".dvc/cache/files").rglob("*") if path.is_file()]
    assert 0 < len(kept) <= 6, "only what is told of"
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(told.root / ".dvc/cache/files")
    shown = told.sdbuild("log").out
    assert shown.count("warning: ") == 1, "of the remote that is gone"
    assert "not here" in shown
    assert len(states(told)) == 2


def test_a_project_in_a_folder_of_a_repository(built: Work, tmp_path: Path) -> None:
    outer = Work(tmp_path / "outer")
    outer.root.mkdir()
    shutil.move(built.root / ".git", outer.root / ".git")
    shutil.move(built.root, outer.root / "inner")
    outer.git("add", "--all")
    outer.git("commit", "--quiet", "-m", "Moved")
    inner = Work(outer.root / "inner")
    [state] = states(inner)
    assert state["subject"] == "Moved"
    assert state["changes"]["pictures"]["added"][0] == f"{CATS}/0000.png"


def test_without_git_and_without_commits(work: Work) -> None:
    assert "nothing was built yet" in work.sdbuild("log").out
    assert "nothing is committed yet" in work.sdbuild("diff", code=3).err
    shutil.rmtree(work.root / ".git")
    for command in (("log",), ("diff",)):
        assert "has no .git that can be used; `sdbuild init .`" in work.sdbuild(*command, code=3).err


def test_history_is_light(told: Work) -> None:
    script = (
        "from sdbuild.cli import main\nimport sys\nfor words in (['log'], ['diff', 'HEAD~1'], ['why', sys.argv[1]]):"
    )
    script += "\n    assert main(words) == 0\nprint('HEAVY', sorted({'torch', 'dvc', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, "build/cat/adapter/cat.safetensors"],
        cwd=told.root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def commit_as(work: Work, author: str, subject: str = "Odd") -> str:
    """Commit the tree of HEAD's parent as git itself would not; its id."""
    tree, parent = work.git("rev-parse", "HEAD~1^{tree}", "HEAD").out.split()
    content = f"tree {tree}\nparent {parent}\n{author}committer A <a> 1 +0000\n\n{subject}".encode()
    made = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally"],
        cwd=work.root,
        input=content,
        capture_output=True,
        check=True,
    )
    return made.stdout.decode().strip()


def test_commits_that_git_would_not_make(told: Work) -> None:
    """Who writes commits by hand chooses authors and dates freely."""
    head = told.git("rev-parse", "HEAD").out.strip()
    for author in (
        "author A <a> 999999999999 +0000\n",
        "author A <a> 99999999999999999999999 +0000\n",
        "author A <a> 1 +9999\n",
        "author A\x1f\x1e <a\x1b> 1 +0000\n",
        f"author {'A' * 300_000} <a> 1 +0000\n",
        "author\n",
        "",
    ):
        told.git("update-ref", "refs/heads/main", commit_as(told, author, "s" * 300_000))
        rows = [built.row() for built in log(Project(told.root), None, 9, None)]
        assert len(rows) == 4, author
        assert all(len(text) < 400 for row in rows for text in row)
        told.git("update-ref", "refs/heads/main", head)
    assert _when("33658-09-27T01:46:39Z") == "33658-09-27T01:4"
    with Revisions(told.root) as revisions:
        unread = commit_as(told, "author A <a> 1 -99999999\n")
        with pytest.raises(UsageError, match=r"git cannot read the history \(fatal: Timestamp before Unix epoch"):
            revisions.resolve(unread)
        for name in ("HEAD:dvc.lock\nHEAD:dvc.lock", "HEAD:\ud800", "HEAD:x\0"):
            assert revisions.blob(name) is None
        assert (revisions.blob("HEAD:dvc.lock") or b"").startswith(b"schema")
