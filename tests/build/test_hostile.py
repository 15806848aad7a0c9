"""Remotes and clones of people who mean harm: nothing outside the project is written, and one message says why.

A world is a folder with a project, the store that it shares and a canary: other people's files, which no command may
touch. Each case plants something in the store or in the clone, and a command is typed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.build.team import Team, local_remote, tracked
from tests.conftest import Result, Work

Plant = Callable[["World"], None]


@dataclass(frozen=True)
class World:
    """A clone of a project whose adapter and pictures are in a store."""

    folder: Path

    @property
    def work(self) -> Work:
        return Work(self.folder / "project")

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    def around(self) -> dict[str, tuple[int, bytes | str]]:
        """All that lies outside the project and the store."""
        found: dict[str, tuple[int, bytes | str]] = {}
        for top, folders, files in os.walk(self.folder):
            if Path(top) == self.folder:
                folders[:] = [name for name in folders if name not in ("project", "store")]
            for path in (Path(top, name) for name in (*folders, *files)):
                content: bytes | str = b""
                if path.is_symlink():
                    content = os.readlink(path)
                elif path.is_file():
                    content = path.read_bytes()
                found[str(path.relative_to(self.folder))] = path.lstat().st_mode, content
        return found

    def run(self, *command: str) -> Result:
        home = str(self.folder / "home")
        env = {"HOME": home, "XDG_CONFIG_HOME": f"{home}/config", "XDG_CONFIG_DIRS": f"{home}/system"}
        return self.work.run(*command, code=None, env=env)

    def put(self, content: bytes, ending: str = "") -> str:
        """Plant an object in the store under its true name."""
        md5 = hashlib.md5(content).hexdigest() + ending
        path = self.store / "files/md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return md5

    def put_list(self, content: Any) -> str:
        return self.put(content if isinstance(content, bytes) else json.dumps(content).encode(), ".dir")

    def data(self, **changes: Any) -> None:
        """Change what the `.dvc` file of the pictures says; keys with `_` are the file's own."""
        content = yaml.safe_load(self.work.read("datasets/cats.dvc"))
        for key, value in changes.items():
            (content if key.startswith("_") else content["outs"][0])[key.lstrip("_")] = value
        self.work.write("datasets/cats.dvc", yaml.safe_dump(content))

    def lock(self, stage: str, index: int, **changes: Any) -> None:
        """Change an out of a stage in `dvc.lock`."""
        content = yaml.safe_load(self.work.read("dvc.lock"))
        content["stages"][stage]["outs"][index].update(changes)
        self.work.write("dvc.lock", yaml.safe_dump(content, sort_keys=False))

    def link(self, path: str, target: str = "canary", *, committed: bool = True) -> None:
        """Put a link in place of a file or folder."""
        place = self.work.root / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(self.folder / target)
        if committed:
            self.work.git("add", "--force", "--all", ".")
            self.work.git("commit", "--quiet", "-m", "Link")


@pytest.fixture(scope="module")
def untouched(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which nothing bad has happened yet: a clone that has pulled nothing."""
    folder = tmp_path_factory.mktemp("world")
    team = Team(folder, local_remote("../../store"))
    anna = team.found(tracked(built_template, tmp_path_factory.mktemp("tracked") / "project"))
    anna.sdbuild("push")
    work = team.join("project")
    work.git("config", "user.name", "A")
    shutil.rmtree(folder / "a")
    shutil.rmtree(team.hub)
    for path in ("canary/file", "canary/sub/file", "home/.bashrc", "x"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("somebody else's")
    return folder


@pytest.fixture
def world(untouched: Path, tmp_path: Path) -> World:
    shutil.copytree(untouched, tmp_path / "world", symlinks=True)
    return World(tmp_path / "world")


def rows(*paths: Any, md5: Any = None) -> Callable[[World], Any]:
    """A list of files of one content that is in the store."""
    return lambda world: [{"md5": md5 or world.put(b"planted"), "relpath": path} for path in paths]


PATHS: dict[str, tuple[Any, ...]] = {
    "up": ("../x",),
    "far up": ("../../../canary/file",),
    "up after a folder": ("a/../../../../canary/file",),
    "up at the end": ("a/..",),
    "two dots": ("..",),
    "one dot": (".",),
    "dot inside": ("a/./b",),
    "empty": ("",),
    "empty part": ("a//b",),
    "slash at the end": ("a/",),
    "absolute": ("/tmp/sdbuild-hostile",),
    "two slashes": ("//tmp/x",),
    "drive": ("C:/x",),
    "drive with backslash": ("C:\\x",),
    "backslash up": ("..\\..\\x",),
    "backslash first": ("\\x",),
    "mixed": ("a\\../../x",),
    "nul": ("a\0b",),
    "git": (".git/hooks/post-checkout",),
    "git below": ("a/.GIT/config",),
    "git without shape": (".g\u200cit/config",),
    "git in wide letters": ("．ｇｉｔ/config",),
    "git with a dot": (".git./config",),
    "dvc": (".dvc/config",),
    "own state": (".sdbuild/build.lock",),
    "too long": ("a" * 256,),
    "surrogate": ("a\ud800",),
    "twice": ("a.png", "b.png", "a.png"),
    "file and folder": ("a", "a/b"),
    "folder and file": ("a/b/c", "a/b"),
    "good and bad": ("0.png", "1.png", "../../../canary/file"),
    "number": (3,),
    "null": (None,),
    "list": (["a"],),
    "mapping": ({"a": 1},),
    "home": ("~/../../../x",),
}
CONTENTS: dict[str, Callable[[World], Any]] = {
    **{name: rows(*paths) for name, paths in PATHS.items()},
    "a list in a list": rows("a", md5="0" * 32 + ".dir"),
    "an MD5 that leads out": rows("a", md5="../../../../canary/file"),
    "an MD5 in capitals": rows("a", md5="A" * 32),
    "a number as MD5": rows("a", md5=5),
    "no MD5": lambda world: [{"relpath": "a"}],
    "no path": lambda world: [{"md5": "0" * 32}],
    "no list": lambda world: {"relpath": "../x", "md5": "0" * 32},
    "a text": lambda world: "../x",
    "null instead": lambda world: None,
    "lists of lists": lambda world: [[[{"relpath": "../x"}]]],
    "texts": lambda world: ["../x"],
    "deep": lambda world: b"[" * 100_000,
    "cut short": lambda world: b'[{"md5": "',
    "not UTF-8": lambda world: b'[{"md5": "\xff"}]',
    "binary": lambda world: bytes(range(256)),
    "nothing": lambda world: b"",
}
QUICK_LISTS = (
    "far up",
    "absolute",
    "good and bad",
    "git below",
    "twice",
    "file and folder",
    "a list in a list",
    "deep",
)


def in_data(content: Callable[[World], Any]) -> Plant:
    return lambda world: world.data(md5=world.put_list(content(world)))


def in_adapter(content: Callable[[World], Any]) -> Plant:
    return lambda world: world.lock("cat-train", 0, md5=world.put_list(content(world)))


def in_dvc_yaml(path: str) -> Plant:
    """A stage of the clone's own that writes elsewhere."""

    def plant(world: World) -> None:
        md5 = world.put(b"planted")
        for name, out in (("dvc.yaml", path), ("dvc.lock", {"path": path, "md5": md5, "size": 7})):
            content = yaml.safe_load(world.work.read(name))
            content["stages"]["more"] = {"cmd": "echo", "outs": [out]}
            world.work.write(name, yaml.safe_dump(content, sort_keys=False))

    return plant


def config(text: str) -> Plant:
    def plant(world: World) -> None:
        known = world.work.read(".dvc/config").decode()
        world.work.write(".dvc/config", known + text.replace("WORLD", str(world.folder)))
        world.work.git("commit", "--quiet", "-am", "Config")

    return plant


def link(path: str, target: str = "canary", *, committed: bool = True) -> Plant:
    return lambda world: world.link(path, target, committed=committed)


def all_datasets(world: World) -> None:
    shutil.copy(world.work.root / "datasets/cats.dvc", world.canary)
    world.link("datasets")


CASES: dict[str, tuple[Plant, str]] = {
    **{f"pictures: {name}": (in_data(content), "datasets/cats.dvc") for name, content in CONTENTS.items()},
    **{f"adapter: {name}": (in_adapter(content), "dvc.lock, cat-train") for name, content in CONTENTS.items()},
    "an MD5 in a .dvc file": (lambda world: world.data(md5="../../../../canary/file"), "is not an MD5"),
    "a number in a .dvc file": (lambda world: world.data(md5=7), "is not an MD5"),
    "a path in a .dvc file": (lambda world: world.data(path="../../canary/file"), "datasets/cats.dvc"),
    "an absolute path": (lambda world: world.data(path=str(world.canary)), "datasets/cats.dvc"),
    "a path into git": (lambda world: world.data(path="../.git/hooks"), "datasets/cats.dvc"),
    "a working folder": (lambda world: world.data(_wdir="../.."), "datasets/cats.dvc"),
    "files in a .dvc file": (
        lambda world: world.data(files=[{"relpath": "../../../x", "md5": world.put(b"planted")}]),
        "datasets/cats.dvc",
    ),
    "an MD5 in dvc.lock": (lambda world: world.lock("cat-train", 0, md5="../../x"), "the entry of cat-train"),
    "a path in dvc.lock": (
        lambda world: world.lock("cat-train", 0, path="../../x"),
        "the entry of cat-train",
    ),
    "a path in dvc.lock that is none": (
        lambda world: world.lock("cat-train", 0, path=[1]),
        "the entry of cat-train",
    ),
    "a stage of others": (in_dvc_yaml("../canary/file"), ""),
    "a cache that is not there": (config("[cache]\n    dir = WORLD/new/cache\n"), "dvc config --local cache.dir"),
    "a cache that is something else": (config("[cache]\n    dir = ../../canary\n"), "dvc config --local cache.dir"),
    "build": (link("build"), "build: is a link"),
    "build of a recipe": (link("build/cat"), "build/cat: is a link"),
    "build of a recipe, not committed": (link("build/cat", committed=False), "build/cat is a link"),
    "an out": (link("build/cat/adapter"), "build/cat/adapter: is a link"),
    "an out, not committed": (link("build/cat/adapter", committed=False), "build/cat/adapter is a link"),
    "a file out": (link("build/cat/metrics.json", "new"), "build/cat/metrics.json: is a link"),
    "a folder in an out": (link("build/cat/samples/a", committed=False), "build/cat/samples/a is a link"),
    "our state": (link(".sdbuild"), ".sdbuild: is a link"),
    "our logs": (link(".sdbuild/logs"), ".sdbuild/logs: is a link"),
    "our lock": (link(".sdbuild/build.lock", "new"), ".sdbuild/build.lock: is a link"),
    "DVC's cache": (link(".dvc/cache"), ".dvc/cache: is a link"),
    "DVC's state": (link(".dvc/tmp"), ".dvc/tmp: is a link"),
    "pictures": (link("datasets/cats"), "datasets/cats is a link"),
    "pictures, not committed": (link("datasets/cats", committed=False), "datasets/cats is a link"),
    "all datasets": (all_datasets, ""),
    "a folder of pictures": (link("datasets/cats/sub", committed=False), "datasets/cats/sub is a link"),
    "what git ignores": (link("datasets/.gitignore", "new"), "datasets/.gitignore is a link"),
}
QUICK = (
    *(f"pictures: {name}" for name in QUICK_LISTS),
    "adapter: far up",
    "an MD5 in a .dvc file",
    "an absolute path",
    "a path in dvc.lock",
    "a cache that is something else",
    "build of a recipe",
    "an out, not committed",
    "a folder of pictures",
    "our lock",
)


def check_pull(world: World, name: str) -> None:
    plant, says = CASES[name]
    plant(world)
    before = world.around()
    result = world.run("sdbuild", "pull")
    assert world.around() == before, name
    assert says in result.text, f"{name}: {result.text}"
    assert result.code in ((2, 3) if says else (0, 2)), f"{name}: {result.text}"
    assert len(result.text.splitlines()) <= 6, f"{name}: {result.text}"
    if result.code:
        left = {path.name for path in (world.work.root / "datasets").glob("cats/*.png")}
        assert not left, f"{name}: {left}"


def check_all(untouched: Path, folder: Path, names: Iterable[str]) -> None:
    wrong = []
    for name in names:
        shutil.copytree(untouched, folder / "world", symlinks=True)
        try:
            check_pull(World(folder / "world"), name)
        except AssertionError as error:
            wrong.append(str(error))
        shutil.rmtree(folder / "world")
    assert not wrong, "\n\n".join(wrong)


def test_a_pull_writes_nothing_outside(untouched: Path, tmp_path: Path) -> None:
    check_all(untouched, tmp_path, QUICK)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_a_pull_writes_nothing_outside_whatever_is_planted(untouched: Path, tmp_path: Path) -> None:
    check_all(untouched, tmp_path, sorted(CASES.keys() - set(QUICK)))


def test_the_world_pulls_where_nothing_is_planted(world: World) -> None:
    before = world.around()
    assert "pulled" in world.run("sdbuild", "pull").out
    assert world.around() == before
    assert world.work.doit().ran == {}


def runs_of(world: World) -> list[Path]:
    return sorted((world.store / "runs").glob("*/*/*"))


def plant_run(world: World, change: Callable[[dict[str, Any]], None]) -> None:
    """Put a changed copy of the captions' run in place of all runs, under the name that goes with it."""
    from sdbuild.build.cache import _digest, run_key

    [path] = [path for path in runs_of(world) if b"cat:captions" in path.read_bytes()]
    entry = yaml.safe_load(path.read_text())
    change(entry)
    for old in runs_of(world):
        old.unlink()
    key = run_key(entry["cmd"], entry["deps"], entry["params"], [out["path"] for out in entry["outs"]])
    new = world.store / "runs" / key[:2] / key / _digest(entry)
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(yaml.safe_dump(entry, sort_keys=False))


def test_a_planted_run_is_refused_and_the_step_runs(world: World) -> None:
    """Somebody who can write to the store alone: `doit` asks it for a run of the step that is to be built."""
    work = world.work
    hostile = world.put_list(rows("../../../canary/file")(world))
    plant_run(world, lambda entry: entry["outs"][0].update(md5=hostile))
    work.run("dvc", "fetch", "--quiet", "datasets/cats.dvc")
    work.run("dvc", "checkout", "--quiet", "datasets/cats.dvc")
    (work.root / "dvc.lock").unlink()
    work.write("build/cat/captions.jsonl", "{}")  # otherwise what it wrote would stay on the remote until it is read
    before = world.around()
    result = world.run("doit", "cat:captions")
    assert world.around() == before
    assert result.code == 0, result.text
    assert set(result.ran) == {"cat:images", "cat:captions"}
    [line] = [line for line in result.text.splitlines() if hostile in line]
    assert line.startswith("warning: a run in the run-cache, cat-captions: the list of files")
    assert "it came from this cache or store" in line


def test_entries_of_the_run_cache_that_are_none(world: World) -> None:
    """Each is passed over as if it were not there, with everything that it names."""
    from sdbuild.build.cache import MOST_OF_RUN, LocalCache, parse_run
    from sdbuild.build.project import Project

    good = next(path for path in runs_of(world) if b"cat:captions" in path.read_bytes()).read_bytes()
    assert parse_run(good)["cmd"] == "sdbuild step cat:captions"
    bomb = b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    entry = yaml.safe_load(good)
    changes: list[dict[str, Any]] = [
        {"outs": [{"path": path, "md5": "0" * 32}]} for paths in PATHS.values() for path in paths[-1:]
    ]
    changes = [each for each in changes if each["outs"][0]["path"] not in ("a.png", "a/b", "~/../../../x")]
    changes += [{"outs": [{"path": "a", "md5": md5}]} for md5 in ("../../x", "0" * 31, 5, None, "0" * 32 + ".DIR")]
    changes += [{"outs": value} for value in (None, "a", {"path": "a"}, [["a"]], 5)]
    changes += [{"deps": [{"path": "../x", "md5": "0" * 32}]}, {"cmd": None}, {"cmd": ["a"]}, {"params": ["a"]}]
    texts = [json.dumps({**entry, **change}).encode() for change in changes]
    texts += [good + bomb, good + b" " * MOST_OF_RUN, b"[" * 5000, b"\xff", b"", b"a: [", b"!!python/object:os.x {}"]
    texts += [b"cmd: " + deep * 50_000 for deep in (b"[", b"{a: ", b"\n- ", b"- ", b"? ")]
    for text in texts:
        with pytest.raises(ValueError, match=r"\w"):
            parse_run(text)
    cache = LocalCache(Project(world.work.root))
    before = world.around()
    for text in texts:
        name = f"aa/{'a' * 64}/{hashlib.sha256(text).hexdigest()}"
        assert cache.keep_run(name, text) is None
        path = cache.run_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    assert cache.named_by(cache.runs()) == {}
    assert world.around() == before


def test_what_is_left_to_dvc_goes_through_the_gate(world: World) -> None:
    """A dataset with a remote of its own is fetched by DVC, which looks at no names."""
    hostile = (
        rows("a", md5="../../../../canary/file")(world),
        rows("a", md5="../../../../new")(world),
        rows("../../../canary/file")(world),
        rows("a", md5=f"{world.canary}/new")(world),
    )
    before = world.around()
    for content in hostile:
        world.data(md5=world.put_list(content), remote="store")
        result = world.run("sdbuild", "pull")
        assert world.around() == before
        assert result.code in (1, 2), result.text
        assert "store" in result.text
        assert not (world.work.root / "datasets/cats").exists()


def test_content_that_is_not_what_its_name_says_is_not_taken(world: World) -> None:
    """Every object of the store is damaged in turn; none gets into the cache, and none into place."""
    from sdbuild.build.cache import LocalCache
    from sdbuild.build.project import Project
    from tests.build.team import objects

    kept = {md5: path.read_bytes() for md5, path in objects(world.store).items()}
    for md5, path in objects(world.store).items():
        path.chmod(0o644)
        path.write_bytes(b"[]" if md5.endswith(".dir") else kept[md5] + b"x")
        path.chmod(0o444)  # DVC takes what cannot be written to for whole
    before = world.around()
    result = world.run("sdbuild", "pull")
    assert "pictures" not in result.out
    cache = LocalCache(Project(world.work.root))
    assert [md5 for md5 in kept if cache.path(md5).exists()] == []
    assert not (world.work.root / "datasets/cats").exists()
    assert not (world.work.root / "build/cat/adapter").exists()
    assert world.around() == before


def test_pipes_and_devices_in_a_store_are_not_read(world: World) -> None:
    """A pipe would be waited for, and a device fill the disk."""
    [file] = [out["md5"] for out in yaml.safe_load(world.work.read("dvc.lock"))["stages"]["cat-images"]["outs"]]
    [folder] = [out["md5"] for out in yaml.safe_load(world.work.read("dvc.lock"))["stages"]["cat-latents"]["outs"]]
    for md5 in (file, folder):
        path = world.store / "files/md5" / md5[:2] / md5[2:]
        path.unlink()
        os.mkfifo(path)
    first, second, *_ = runs_of(world)
    for path in (first, second):
        path.unlink()
    os.mkfifo(first)
    second.symlink_to("/dev/zero")
    started = time.monotonic()
    result = world.run("sdbuild", "pull")
    assert time.monotonic() - started < 60, result.text
    assert result.code == 0, result.text
    assert (world.work.root / "build/cat/adapter/cat.safetensors").is_file()
    result = world.run("sdbuild", "push")
    assert result.code == 1
    first_line, second_line = result.err.splitlines()
    assert first_line.startswith("not pushed, since neither this cache nor store has it: build/cat/images.jsonl")
    assert second_line.startswith("`dvc commit --force`")


def test_a_link_that_the_user_made_is_theirs(built: Work, tmp_path: Path) -> None:
    """`build` and `.sdbuild` may be on another disk."""
    for name in ("build", ".sdbuild"):
        (built.root / name).rename(tmp_path / name)
        (built.root / name).symlink_to(tmp_path / name)
    assert built.doit().out == "everything is up to date\n"
    shutil.rmtree(tmp_path / "build/cat/adapter")
    assert "restored" in built.doit().out
    assert built.adapter()


COMMANDS = (
    ("doit", "cat:images"),
    ("sdbuild", "plan"),
    ("sdbuild", "check"),
    ("sdbuild", "log"),
    ("sdbuild", "push"),
    ("sdbuild", "gc", "--keep", "0", "--delete"),
    ("doit", "clean", "cat"),
)


def check_commands(world: World, name: str) -> None:
    """Whatever is typed, in this order, nothing outside changes."""
    CASES[name][0](world)
    before = world.around()
    for command in COMMANDS:
        result = world.run(*command)
        assert world.around() == before, f"{name}, {command}"
        assert result.code in (0, 1, 2, 3), f"{name}, {command}: {result.text}"


def test_no_command_writes_outside(untouched: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("pictures: far up", "build of a recipe, not committed", "our lock")):
        shutil.copytree(untouched, tmp_path / str(number), symlinks=True)
        check_commands(World(tmp_path / str(number)), name)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_no_command_writes_outside_whatever_is_planted(untouched: Path, tmp_path: Path) -> None:
    names = [name for name in CASES if ": " not in name or "far up" in name or "deep" in name]
    wrong = []
    for name in names:
        shutil.copytree(untouched, tmp_path / "world", symlinks=True)
        try:
            check_commands(World(tmp_path / "world"), name)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
        shutil.rmtree(tmp_path / "world")
    assert not wrong, "\n\n".join(wrong)
