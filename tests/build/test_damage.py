"""Every file of a built project is damaged in turn: the same bytes in the end, or one clear message; never a hang.

What may happen is decided by whose the file is. What builds write is made anew or named. What the user wrote may be
wrong now, or mean something else; it is theirs, and stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import BIN, Work, environment
from tests.warm import run

LIMIT = 60.0
"""Seconds; a command that takes longer hangs."""
ENDS = {0, 1, 2, 3}
"""Exit codes that mean something."""


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty_it(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def scramble(path: Path, chance: random.Random) -> None:
    """Other bytes in the middle, or nulls."""
    data = bytearray(path.read_bytes()) or bytearray(8)
    start = chance.randrange(len(data))
    length = min(len(data) - start, max(8, len(data) // 4))
    data[start : start + length] = bytes(length) if chance.random() < 0.5 else chance.randbytes(length)
    path.write_bytes(data)


def make_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept.txt").write_text("the user's\n")


def make_pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def retype(path: Path, chance: random.Random) -> None:
    """Right syntax, wrong types: numbers for texts, lists for mappings."""
    texts = ['{"stages": [1, 2], "signature": 7}\n', "[1, {}, null]\n", "outs: {md5: 5}\n", "7\n"]
    path.write_text(chance.choice(texts))


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    cut,
    empty_it,
    delete,
    scramble,
    make_folder,
    make_pipe,
    retype,
)


def files_of(root: Path) -> list[str]:
    """Everything in a project but git's own files, the base and the tasks, which others read first."""
    left_out = (".git/", "base/", "dodo.py", "__pycache__/")
    paths = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    return [path for path in paths if not path.startswith(left_out)]


def content(root: Path, *places: str) -> dict[str, str]:
    """Digests of what lies in some places, and the kinds of what is no file."""
    found = {}
    for place in places:
        top = root / place
        for path in [top, *sorted(top.rglob("*"))]:
            mode = path.lstat().st_mode if os.path.lexists(path) else 0
            if stat.S_ISREG(mode):
                found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif mode and not stat.S_ISDIR(mode):
                found[path.relative_to(root).as_posix()] = oct(mode)
    return found


def written(root: Path) -> dict[str, str]:
    """What the user wrote: pictures, captions, recipes."""
    found = content(root, "datasets", "recipes")
    return {path: digest for path, digest in found.items() if not path.endswith((".dvc", ".gitignore"))}


def is_users(path: str) -> bool:
    return path.startswith(("datasets/", "recipes/"))


def commands(work: Work, path: str) -> Iterator[tuple[str, int, str]]:
    checked = is_users(path) or path.startswith(".sdbuild/")
    for words in (["sdbuild", "plan"], *([["sdbuild", "check"]] if checked else []), ["doit"]):
        done = run([str(BIN / words[0]), *words[1:]], cwd=work.root, env=environment(), timeout=LIMIT)
        yield " ".join(words), done.returncode, done.stdout + done.stderr


def try_damage(built: Path, path: str, way: Callable[[Path, random.Random], None], folder: Path) -> str | None:
    """Damage a file of a copy; what went wrong, if anything did."""
    work = Work(built).copy(folder)
    expected = outcome(built)
    way(work.root / path, random.Random(zlib.crc32(f"{path} {way.__name__}".encode())))
    users = written(work.root)
    said, code = "", 0
    for command, code, said in commands(work, path):
        if "Traceback" in said or code not in ENDS:
            return f"{command} ended with {code}:\n{said[-1500:]}"
        if code and not said.strip():
            return f"{command} ended with {code} and said nothing"
    if written(work.root) != users:
        return "the user's files were changed"
    theirs = way is make_folder and not path.startswith(".sdbuild/")
    if theirs and not any(work.root.rglob("kept.txt")):
        return "the folder in its place is gone with what was in it"
    if code == 0 and not is_users(path):
        found = outcome(work.root)  # what the user may have written into an out is kept beside it
        wrong = [name for name, digest in expected.items() if found.get(name) != digest]
        if wrong:
            return f"other bytes in the end, and no word of it: {wrong[:5]}\n{said[-500:]}"
    return None


def outcome(root: Path) -> dict[str, str]:
    """What a build leaves: its outs, but for the seconds that the training took."""
    found = content(root, "build")
    for path in ("build/cat/metrics.json", "build/cat/recipe.json"):
        found.pop(path, None)
    return {path: digest for path, digest in found.items() if not path.endswith("kept.txt")}


@pytest.fixture(scope="session")
def whole(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built project whose dataset is tracked by DVC, with all caches filled."""
    work = Work(built_template).copy(tmp_path_factory.mktemp("whole") / "project")
    work.git("rm", "-r", "--quiet", "--cached", "datasets/cats")
    work.dvc("add", "--quiet", "datasets/cats")
    work.doit()
    work.sdbuild("gc")
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Track")
    return work.root


def try_all(whole: Path, folder: Path, cases: list[tuple[str, Callable[[Path, random.Random], None]]]) -> list[str]:
    faults = []
    for number, (path, way) in enumerate(cases):
        place = folder / str(number)
        try:
            fault = try_damage(whole, path, way, place)
        except Exception as error:  # a command that hangs, above all
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            faults.append(f"{path}, {way.__name__}: {fault}")
        shutil.rmtree(place, ignore_errors=True)
    return faults


def cases_of(root: Path) -> list[tuple[str, Callable[[Path, random.Random], None]]]:
    return [(path, way) for path in files_of(root) for way in WAYS]


KINDS = ("datasets", "recipes", "dvc.lock", ".dvc/cache/runs", ".dvc/cache/files", ".dvc/", ".sdbuild/", "build/", "")


def kind_of(path: str) -> str:
    return next(kind for kind in KINDS if path.startswith(kind))


@pytest.mark.timeout(900)
def test_a_sample_of_damage(whole: Path, tmp_path: Path) -> None:
    """One file of each kind, each damaged in its own two ways."""
    chance = random.Random(5)
    cases = []
    for kind in KINDS:
        paths = [path for path in files_of(whole) if kind_of(path) == kind]
        cases += [(chance.choice(paths), way) for way in chance.sample(WAYS, 2)]
    assert not (faults := try_all(whole, tmp_path, cases)), "\n\n".join(faults)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_damaged_in_every_way(kind: str, whole: Path, tmp_path: Path) -> None:
    cases = [(path, way) for path, way in cases_of(whole) if kind_of(path) == kind]
    assert cases
    faults = try_all(whole, tmp_path, cases)
    assert not faults, f"{len(faults)} of {len(cases)}\n" + "\n\n".join(faults)
