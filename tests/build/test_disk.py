"""What can lie on a disk: no command hangs over it or ends in a traceback, and each says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sdbuild.build.lockfile import LockFile
from sdbuild.build.project import Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.tracked import DataFile
from sdbuild.console import Console
from sdbuild.errors import InputError
from tests.conftest import BIN, Result, Work, environment
from tests.warm import run

CAPABILITIES = "-dac_override,-dac_read_search,-fowner,-chown"


def quick(work: Work, *words: str) -> Result:
    """A command that may not hang."""
    done = run([str(BIN / words[0]), *words[1:]], cwd=work.root, env=environment(), timeout=60)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def test_special_files_among_pictures(built: Work) -> None:
    data = built.root / "datasets" / "cats"
    for name in ("pipe", "pipe.png", "0000.caption", ".captions-fit.jsonl"):
        os.mkfifo(data / name)
    for name, target in (("a", "."), ("b", "."), ("root", "/"), ("zero.png", "/dev/zero")):
        (data / name).symlink_to(target)
    checked = quick(built, "sdbuild", "check")
    assert checked.code == 0, checked.text
    for words in ("a named pipe is no picture", "a device is no picture", "links to folders are not followed"):
        assert words in checked.text
    assert {step["action"] for step in built.plan().values()} == {"none"}
    assert "everything is up to date" in quick(built, "doit").out
    (data / "0001.txt").unlink()
    os.mkfifo(data / "0001.txt")
    assert "0001.png: no caption" in quick(built, "sdbuild", "check").err


def test_special_files_in_a_dataset_that_dvc_keeps(built: Work) -> None:
    built.git("rm", "-r", "--quiet", "--cached", "datasets/cats")
    built.dvc("add", "--quiet", "datasets/cats")
    os.mkfifo(built.root / "datasets" / "cats" / "pipe")
    built.write("datasets/cats/0000.txt", "a blue cat\n")
    refused = quick(built, "doit")
    assert refused.code == 2
    assert refused.err.splitlines() == [
        "datasets/cats/pipe: is a named pipe, which DVC cannot keep; move it out of datasets/cats"
    ]


def test_special_files_among_a_projects_own(built: Work) -> None:
    for path in ("dvc.lock", ".sdbuild/cache/stat.sqlite", "build/cat/captions.jsonl", ".dvc/config", "recipes/b.yaml"):
        place = built.root / path
        kept = place.read_bytes() if place.exists() else None
        place.unlink(missing_ok=True)
        os.mkfifo(place)
        for command in (["sdbuild", "plan"], ["doit"]):
            refused = quick(built, *command)
            assert refused.code == 2
            assert refused.out == "" or path.startswith("recipes/"), "the other recipe is judged"
            [line] = refused.err.splitlines()
            assert path in line
        place.unlink()
        if kept is not None:
            place.write_bytes(kept)


def test_links_are_seen_by_all_alike(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        (place / "a.png").write_bytes(b"a")
    cache = StatCache(tmp_path, tmp_path / "cache.sqlite")
    before = cache.digest("data")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.png")
    assert cache.digest("data") == before
    assert list(cache.listing("data")) == ["a.png"]
    assert cache.digest("data/pipe.png") is None
    (folder / "b.png").symlink_to(elsewhere / "a.png")
    assert set(cache.listing("data")) == {"a.png", "b.png"}, "a link to a file is a file"
    cache.close()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_outs_and_caches_on_another_disk(built: Work, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"sdbuild-test-{os.getpid()}"
    if other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    other.mkdir()
    try:
        for number, name in enumerate(("build", ".sdbuild")):
            built.recipe(sample={"seeds": [5 + number]})
            expected = built.copy(tmp_path / f"whole-{name}")
            shutil.move(built.root / name, other / name)
            (built.root / name).symlink_to(other / name)
            assert set(built.doit().ran) == set(expected.doit().ran) == {"cat:samples"}
            grids = [work.read("build/cat/samples/grid.png") for work in (built, expected)]
            assert grids[0] == grids[1]
            shutil.rmtree(built.root / "build" / "cat" / "samples")
            assert "restored without running: cat:samples" in built.doit().out
        assert not list(other.rglob("*.tmp"))
    finally:
        shutil.rmtree(other)


def test_a_damaged_lock_file_is_named(built: Work) -> None:
    whole = built.read("dvc.lock")
    project = Project(built.root)
    damages = {
        "cut in a line": whole[: len(whole) // 2 - 3],
        "not UTF-8": whole.replace(b"sdbuild", b"\xff\xfe", 1),
        "nulls": whole[:50] + bytes(20) + whole[70:],
        "conflict": b"<<<<<<< ours\n" + whole + b"=======\n>>>>>>> theirs\n",
        "a list": b"- 1\n- 2\n",
        "a text": b"hello\n",
        "stages": b"schema: '2.0'\nstages: [1]\n",
        "numbers": whole.replace(b"md5: ", b"md5: 5  # ", 1),
        "entry": b"schema: '2.0'\nstages:\n  cat-train: 7\n",
        "deps": b"schema: '2.0'\nstages:\n  cat-train:\n    cmd: sdbuild step cat:train\n    deps: {a: b}\n",
        "params": b"schema: '2.0'\nstages:\n  cat-train:\n    cmd: sdbuild step cat:train\n    params: [1]\n",
        "deep": b"[" * 20000,
    }
    for kind, text in damages.items():
        built.write("dvc.lock", text)
        with pytest.raises(InputError, match=r"^dvc\.lock.*restore it with git"):
            print(kind, LockFile(project).stages())
    built.write("dvc.lock", damages["not UTF-8"])
    for command in (["sdbuild", "plan"], ["doit"]):
        refused = quick(built, *command)
        assert refused.code == 2
        assert "dvc.lock: it is not UTF-8 text; restore it with git" in refused.err
    (built.root / "dvc.lock").unlink()
    assert "6 steps" not in built.doit().out
    assert built.read("dvc.lock") == whole, "what the run-cache knows is recorded again"


def test_caches_with_other_values_are_not_believed(built: Work) -> None:
    cached = built.root / ".sdbuild" / "cache" / "dvc-lock.json"
    right = LockFile(Project(built.root)).stages()
    for before, after in (
        (b'"md5": "', b'"md5": "00'),
        (b'"stages": {', b'"stages": 5, "x": {'),
        (b"cat-train", b"cat-t"),
    ):
        text = cached.read_bytes()
        assert before in text
        cached.write_bytes(text.replace(before, after))
        assert LockFile(Project(built.root)).stages() == right


def test_a_damaged_stat_cache_is_not_believed(tmp_path: Path) -> None:
    folder, database = tmp_path / "data", tmp_path / "cache.sqlite"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
        os.utime(folder / name, (1, 1))

    def digests() -> object:
        cache = StatCache(tmp_path, database)
        try:
            return cache.digest("data"), cache.listing("data"), cache.digest("data/a")
        finally:
            cache.close()

    right = digests()
    whole = database.read_bytes()
    for start in range(0, len(whole), 37):
        database.write_bytes(whole[:start] + b"0" * 30 + whole[start + 30 :])
        assert digests() == right, start
    for damage in (b"", b"no database" * 99, whole[: len(whole) // 2]):
        database.write_bytes(damage)
        assert digests() == right
    database.unlink()
    database.mkdir()
    assert digests() == right


def test_a_damaged_file_of_dvc_is_named(built: Work) -> None:
    built.git("rm", "-r", "--quiet", "--cached", "datasets/cats")
    built.dvc("add", "--quiet", "datasets/cats")
    whole = built.read("datasets/cats.dvc").decode()
    project = Project(built.root)
    conflict = f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> other\n"
    for text in (conflict, "outs: 5\n", "[1\n", "", "- a\n", "\0\0"):
        built.write("datasets/cats.dvc", text)
        with pytest.raises(InputError, match=r"^datasets/cats\.dvc.*restore it with git"):
            DataFile.read(project, "datasets/cats.dvc")
    built.write("datasets/cats.dvc", conflict)
    for command in (["sdbuild", "plan"], ["doit"], ["sdbuild", "push"]):
        refused = quick(built, *command)
        assert "Traceback" not in refused.text
        if command[1:] != ["push"]:  # there is no remote, which is said first
            assert refused.code == 2
            assert "datasets/cats.dvc:1: a merge left conflict marks; restore it with git" in refused.err


def test_without_git_or_dvc(built: Work, tmp_path: Path) -> None:
    commands = (
        ["sdbuild", "plan"], ["sdbuild", "check"], ["doit"], ["sdbuild", "push"], ["sdbuild", "pull"],
        ["sdbuild", "log"],
        ["sdbuild", "diff"], ["sdbuild", "gc"], ["sdbuild", "why", "cat:train"], ["doit", "list"],
    )  # fmt: skip
    for lost in (".git", ".dvc", ".git/HEAD"):
        place, kept = built.root / lost, tmp_path / "kept"
        place.rename(kept)
        for command in commands:
            told = quick(built, *command)
            assert told.code == 3, command
            [line] = told.err.splitlines()
            assert f"has no {lost[:4]} that can be used; `sdbuild init .` there sets it up" in line
        if lost == ".git":
            quick(built, "sdbuild", "init", ".")
            assert "everything is up to date" in quick(built, "doit").out
            shutil.rmtree(place)
        kept.rename(place)
    built.write(".dvc/config", "[core\n")
    built.recipe(sample={"seeds": [9]})
    told = quick(built, "doit")
    assert told.code
    assert ".dvc/config" in told.err


def test_names_that_there_are_not(built: Work) -> None:
    (built.root / "build" / "old").mkdir()
    told = {
        ("sdbuild", "plam"): "no command plam (did you mean plan?)",
        ("sdbuild", "zzz"): "no command zzz: there is init, check, ",
        ("doit", "catt"): "no recipe or step is called catt (did you mean cat?)",
        ("doit", "clean", "cat:trian"): "no recipe or step is called cat:trian (did you mean cat:train?)",
        ("doit", "clean", "old"): "there is no recipe old any more; what it built is in build/old: delete that folder",
    }
    for command, words in told.items():
        result = quick(built, *command)
        assert result.code == 3
        assert words in result.err
        assert "worker" not in result.text
        assert "member" not in result.text
    assert "build/old belongs to no recipe any more" in quick(built, "sdbuild", "gc").out
    assert "cat:train is fresh" in quick(built, "sdbuild", "why", "cat").out.splitlines()
    cleaned = quick(built, "doit", "clean").out.splitlines()
    assert "removing build/cat/adapter" in cleaned
    assert all(line.startswith("removing build/cat/") for line in cleaned)


def test_a_reader_that_has_seen_enough(built: Work) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        console = Console(pipe)
        console.say("one")
        console.table(("a", "b"), [("1", "2")])
        console.say("two")
    for command in ("sdbuild plan", "doit", "doit list --all"):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} | true"],
            cwd=built.root, env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.stderr == "", command
        assert done.returncode in (0, 141), command


def as_another(command: Sequence[str]) -> list[str]:
    """A command that has no more rights than the permissions give."""
    if os.geteuid():
        return list(command)
    if shutil.which("setpriv") is None:
        pytest.skip("root may do anything here")
    return ["setpriv", f"--bounding-set={CAPABILITIES}", f"--inh-caps={CAPABILITIES}", *command]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_project_that_may_not_be_written(built: Work) -> None:
    places = [built.root, *built.root.rglob("*")]
    modes = {path: path.stat().st_mode for path in places if not path.is_symlink()}

    def told(*words: str) -> Result:
        done = subprocess.run(
            as_another([str(BIN / words[0]), *words[1:]]),
            cwd=built.root, env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        result = Result(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in result.text, result.text
        return result

    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        assert "everything is up to date" in told("doit").out
        assert told("sdbuild", "plan").code == 0
        refused = told("sdbuild", "captions", "replace", "cat", "red", "blue", "--write")
        assert refused.code in (1, 2, 3)
        deleted = told("sdbuild", "gc", "--delete")
        assert deleted.code == 1
        assert deleted.err == (
            ".sdbuild/build.lock: Permission denied; mend its owner or its permissions (`ls -ld` shows them)\n"
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_dvc_is_not_asked_to_wait(built: Work) -> None:
    """An object of the cache that is a pipe is put away, and what needs it is built again."""
    shutil.rmtree(built.root / "build" / "cat" / "samples")
    cache = built.root / ".dvc" / "cache" / "files" / "md5"
    entry = LockFile(Project(built.root)).stages()["cat-samples"]
    [md5] = [row["md5"] for row in entry["outs"] if row["path"].endswith("samples")]
    place = cache / md5[:2] / md5[2:]
    place.chmod(0o644)
    place.unlink()
    os.mkfifo(place)
    assert built.doit().ran.keys() == {"cat:samples"}
    assert place.is_file()


def test_what_stands_where_something_else_should(built: Work) -> None:
    """The plan says what the build does."""
    built.write("datasets/cats/0000.txt", "other words")
    out = built.root / "build/cat/captions.jsonl"
    out.unlink()
    out.mkdir()
    assert built.plan()["cat:captions"]["action"] == "run"
    assert "cat:captions" in built.doit("cat:captions").ran
    built.write("datasets/cats/0000.txt", "more words")

    shutil.rmtree(built.root / ".sdbuild")
    built.write(".sdbuild", "a file")
    assert "is right" in built.sdbuild("check").out, "who only looks needs no place for notes"
    told = built.doit(code=1).err
    assert told.endswith(".sdbuild: File exists; a folder is needed there: move the file away\n")
    (built.root / ".sdbuild").unlink()

    (built.root / "build/cat").rename(built.root / "elsewhere")
    (built.root / "build/cat").symlink_to(built.root / "elsewhere")
    for told in (built.sdbuild("plan", code=2).err, built.doit(code=2).err):
        assert "build/cat is a link; delete it" in told

    shutil.rmtree(built.root / "base/unet")
    built.write("base/unet", "a file")
    told = built.sdbuild("plan", "--json", code=2).out
    blocked = {step["name"] for step in json.loads(told)["steps"] if step.get("blocked")}
    assert blocked == {"cat:latents", "cat:train", "cat:samples"}


def test_a_repository_of_another_user(built: Work) -> None:
    others = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    told = built.run(str(BIN / "sdbuild"), "gc", code=3, env=others).err
    assert f"git does not read {built.root}, which belongs to another user; `git config --global" in told


def test_stopped_while_modules_are_loaded() -> None:
    for module, late in (("sdbuild.build.tasks", "sdbuild.build.engine"), ("sdbuild.cli", "sdbuild.console")):
        stop = (
            "import sys\nclass Stop:\n    def find_spec(name, *rest):\n"
            f"        if name == {late!r}: raise KeyboardInterrupt\nsys.meta_path.insert(0, Stop)\nimport {module}"
        )
        done = subprocess.run([sys.executable, "-c", stop], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")
