"""A team shares data, outs and runs through a remote: nothing is built twice, and nothing is lost with it."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdbuild.build.remote import scrub
from tests.build.team import Team, check_store, local_remote, objects, start, told, tracked
from tests.conftest import RECIPE, Work
from tests.tiny import make_pictures

INTERMEDIATE = ("images.jsonl", "captions.jsonl", "latents", "text")


@pytest.fixture(scope="module")
def tracked_template(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked(built_template, tmp_path_factory.mktemp("tracked") / "project")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path, local_remote(tmp_path / "store"))


@pytest.fixture
def anna(team: Team, tracked_template: Path) -> Work:
    """The first member; what she has built is pushed."""
    work = team.found(tracked_template)
    assert "pushed" in work.sdbuild("push").out
    return work


def commit(work: Work) -> None:
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "State")
    work.git("push", "--quiet")


def unrun(work: Work, *, lies: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
    """A build runs nothing; what lies in the recipe's folder afterwards, and what does not."""
    assert work.doit().ran == {}
    assert [name for name in lies if not (work.root / "build/cat" / name).exists()] == []
    assert [name for name in absent if (work.root / "build/cat" / name).exists()] == []


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A file system of its own; only who may mount has it."""
    at.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def test_clones_build_nothing(team: Team, anna: Work) -> None:
    assert anna.sdbuild("push").out == "store has everything that is here\n"
    check_store(team.store)

    # A record of a recipe that is gone does not keep the others from their place.
    lock = anna.read("dvc.lock")
    gone = lock.decode().replace("stages:\n", "stages:\n  dog-images:\n    cmd: echo\n    outs: []\n", 1)
    bert = team.join("b")
    bert.write("dvc.lock", gone)
    pulled = bert.sdbuild("pull").out
    assert "pulled" in pulled
    assert "warning" not in pulled
    bert.write("dvc.lock", lock)
    assert bert.doit().out == "everything is up to date\n"
    unrun(bert, lies=(*INTERMEDIATE, "adapter", "samples"))
    assert "up to date" in bert.dvc("status").out
    assert bert.sdbuild("pull").out == "everything on store is here\n"

    cleo = team.join("c")
    unrun(cleo, lies=("adapter", "samples", "metrics.json"), absent=INTERMEDIATE)
    assert cleo.adapter() == bert.adapter() == anna.adapter()
    # The pictures are judged by their .dvc file, and stay away from who does not need them.
    cleo.recipe(sample={"guidance": 3})
    assert set(cleo.doit().ran) == {"cat:samples"}
    assert not (cleo.root / "datasets/cats").exists()
    changed = cleo.git("status", "--porcelain").out.split()[1::2]
    assert changed == ["build/cat/recipe.json", "dvc.lock", "recipes/cat.yaml"]


def test_a_clone_without_a_remote_builds_the_same_bytes(team: Team, anna: Work) -> None:
    dora = team.join("d")
    dora.write(".dvc/config", "")
    shutil.copytree(anna.root / "datasets/cats", dora.root / "datasets/cats")
    assert len(dora.doit().ran) == 6
    assert dora.adapter() == anna.adapter()
    assert dora.read("dvc.lock") != b""


def test_changes_travel_and_come_back(team: Team, anna: Work) -> None:
    bert = team.join("b")
    before = anna.adapter()
    anna.recipe(train={"learning_rate": 5e-4})
    assert set(anna.doit().ran) == {"cat:train", "cat:samples"}
    anna.sdbuild("push")
    commit(anna)

    # One who has not heard of it, and does the same: the remote is asked, one step at a time.
    bert.recipe(train={"learning_rate": 5e-4})
    unrun(bert, lies=("adapter", "samples"), absent=INTERMEDIATE)
    assert bert.adapter() == anna.adapter() != before
    bert.git("checkout", "--quiet", ".")

    bert.git("pull", "--quiet")
    bert.sdbuild("pull")
    (team.store).rename(team.folder / "away")
    bert.recipe()
    unrun(bert)
    assert bert.adapter() == before
    bert.recipe(train={"learning_rate": 5e-4})
    unrun(bert)
    assert bert.adapter() == anna.adapter()


def test_a_lost_record_comes_back_from_the_remote_without_what_nobody_needs(team: Team, anna: Work) -> None:
    bert = team.join("b")
    (bert.root / "dvc.lock").unlink()
    unrun(bert, lies=("adapter", "samples"), absent=("latents", "text"))
    assert bert.read("dvc.lock") == anna.read("dvc.lock")
    unrun(bert, absent=("latents", "text"))
    bert.recipe(train={"seed": 1})
    assert set(bert.doit().ran) == {"cat:train", "cat:samples"}


def test_lookup_never_asks_nothing(team: Team, anna: Work) -> None:
    bert = team.join("b")
    bert.sdbuild("pull")
    team.store.rename(team.folder / "away")
    bert.recipe(sample={"guidance": 3}, remote={"lookup": "never"})
    result = bert.doit()
    assert set(result.ran) == {"cat:samples"}
    assert told(result.text) == []
    assert b'"lookup": "never"' in bert.read("build/cat/recipe.json")

    # With `auto` the trouble is told, once.
    bert.recipe(train={"seed": 1}, sample={"guidance": 3})
    result = bert.doit()
    assert set(result.ran) == {"cat:train", "cat:samples"}
    assert told(result.text) == [
        f"warning: remote store: no such folder: {team.store}; going on without it",
    ]
    # To look the other way makes nothing stale.
    bert.recipe(train={"seed": 1}, sample={"guidance": 3}, remote={"lookup": "never"})
    unrun(bert)


def test_two_push_at_the_same_time(team: Team, anna: Work) -> None:
    bert = team.join("b")
    bert.recipe(sample={"guidance": 3})
    anna.recipe(sample={"guidance": 4})
    assert [set(work.doit().ran) for work in (anna, bert)] == [{"cat:samples"}, {"cat:samples"}]
    both = [start(work, "sdbuild", "push") for work in (anna, bert)]
    outs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    check_store(team.store)
    cleo = team.join("c")
    cleo.sdbuild("pull")
    for guidance in (3, 4, RECIPE["sample"]["guidance"]):
        cleo.recipe(sample={"guidance": guidance})
        unrun(cleo)


def test_a_push_that_is_killed_goes_on(team: Team, tracked_template: Path) -> None:
    anna = team.found(tracked_template)
    for number in range(4000):
        anna.write(f"datasets/more/{number}.txt", f"caption {number}")
    anna.dvc("add", "--quiet", "datasets/more")
    anna.git("add", ".")
    commit(anna)
    push = start(anna, "sdbuild", "push")
    while len(objects(team.store)) < 50 and push.poll() is None:
        time.sleep(0.01)
    push.kill()
    push.communicate()
    assert push.returncode == -signal.SIGKILL, "it was done before it could be killed"
    some = len(objects(team.store))
    assert some < 4000
    check_store(team.store)

    assert "pushed" in anna.sdbuild("push").out
    check_store(team.store)
    bert = team.join("b")
    bert.sdbuild("pull")
    unrun(bert)
    assert bert.read("datasets/more/3999.txt") == b"caption 3999"


def test_the_remote_vanishes_during_a_build(team: Team, anna: Work) -> None:
    bert = team.join("b")
    bert.recipe(images={"resolution": 40})
    text = ""
    with start(bert, "doit") as build:
        assert build.stdout is not None
        for line in build.stdout:
            text += line
            if line.startswith("cat:images  done"):
                team.store.rename(team.folder / "away")
    assert build.returncode == 0, text
    assert "cat:latents  done" in text
    assert "cat:samples  done" in text
    assert len(told(text)) == 1, text
    (team.folder / "away").rename(team.store)
    unrun(bert)
    assert "up to date" in bert.dvc("status").out


def test_damaged_objects_of_a_remote_are_not_taken(team: Team, anna: Work) -> None:
    for path in objects(team.store).values():
        if path.stat().st_size == len(anna.adapter()):
            path.chmod(0o644)
            path.write_bytes(anna.adapter()[:-1] + b"?")
    bert = team.join("b")
    assert "cat:train" in bert.doit().ran
    assert bert.adapter() == anna.adapter()


def test_pull_keeps_edits_by_hand(team: Team, anna: Work) -> None:
    bert = team.join("b")
    bert.sdbuild("pull")
    bert.write("datasets/cats/0001.txt", "my own words\n")
    make_pictures(anna.root / "datasets/cats", 5, size=32)
    anna.dvc("add", "--quiet", "datasets/cats")
    anna.sdbuild("push")
    commit(anna)
    bert.git("pull", "--quiet")
    result = bert.sdbuild("pull")
    assert "datasets/cats has changes that are saved nowhere; it is kept as it is" in result.out
    assert bert.read("datasets/cats/0001.txt") == b"my own words\n"
    assert not (bert.root / "datasets/cats/0004.png").exists()
    bert.write("datasets/cats/0001.txt", anna.read("datasets/cats/0001.txt"))
    bert.sdbuild("pull")
    assert bert.read("datasets/cats/0004.png") == anna.read("datasets/cats/0004.png")


def test_no_remote_is_a_word_and_a_remedy(built: Work) -> None:
    for command in ("push", "pull"):
        result = built.sdbuild(command, code=3)
        assert result.err == "no default remote is configured; `dvc remote add --default NAME URL` sets it\n"
    built.dvc("remote", "add", "store", "/nowhere")
    assert "`dvc remote default store` sets it" in built.sdbuild("push", code=3).err


def test_a_store_behind_a_web_server(team: Team, anna: Work) -> None:
    """It can be read and not listed, so it has no run-cache; it cannot be written."""
    bert = team.join("b")
    handler = functools.partial(_Silent, directory=str(team.store))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bert.write(".dvc/config", local_remote(f"http://127.0.0.1:{server.server_port}"))
        unrun(bert, lies=("adapter", "samples"), absent=INTERMEDIATE)
        assert "and 0 runs from store" in bert.sdbuild("pull").out
        bert.recipe(sample={"guidance": 3})
        result = bert.doit()
        assert set(result.ran) == {"cat:samples"}
        assert told(result.text) == []
        refused = bert.sdbuild("push", code=1)
        assert refused.err.startswith("remote store: ")
        assert len(refused.text.splitlines()) == 1
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_a_remote_of_which_the_library_is_missing(built: Work) -> None:
    built.dvc("remote", "add", "--default", "store", "gdrive://folder")
    assert built.sdbuild("push", code=1).err == (
        "remote store: gdrive is supported, but requires 'dvc-gdrive' to be installed\n"
    )
    built.recipe(sample={"guidance": 3})
    assert len(told(built.doit().text)) == 1


def test_a_store_that_cannot_be_written(team: Team, anna: Work) -> None:
    anna.write("datasets/cats/0001.txt", "other words\n")
    anna.dvc("add", "--quiet", "datasets/cats")
    kept = team.folder / "kept"
    team.store.rename(kept)
    with small_disk(team.store, "8m"):
        shutil.copytree(kept, team.store, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(team.store)], check=True)
        result = anna.sdbuild("push", code=1)
        assert result.err.startswith("remote store: Read-only file system")
        assert len(result.text.splitlines()) == 1
        bert = team.join("b")
        bert.sdbuild("pull")
        unrun(bert)


def test_a_disk_that_is_full_while_a_step_is_saved(built: Work, tmp_path: Path) -> None:
    lock, adapter = built.read("dvc.lock"), built.adapter()
    with small_disk(tmp_path / "disk", "16m") as disk:
        shutil.copytree(built.root / ".dvc/cache", disk / "cache")
        shutil.rmtree(built.root / ".dvc/cache")
        built.write(".dvc/config", f"[cache]\n    dir = {disk / 'cache'}\n")
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 8192)
        built.recipe(train={"seed": 1})
        result = built.doit(code=1)
        assert "cat:train: its outs could not be saved" in result.err
        assert len(result.err.splitlines()) == 1
        assert built.read("dvc.lock") == lock
        assert built.adapter() == adapter
        ballast.unlink()
        assert set(built.doit().ran) == {"cat:train", "cat:samples"}
        assert built.adapter() != adapter
        unrun(built)
        assert "up to date" in built.dvc("status").out
        built.recipe()
        unrun(built)
        assert built.adapter() == adapter


def test_secrets_stay_out_of_messages() -> None:
    text = "cannot open ssh://me:hunter2@host/x and https://s3/x?X-Amz-Signature=abc with KEYKEYKEY"
    assert scrub(text, ["KEYKEYKEY", "x"]) == "cannot open ssh://host/x and https://s3/x with ***"
