"""A team: a project, the bare repository and the store that it shares, and clones of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.conftest import BIN, Work, environment


@dataclass(frozen=True)
class Team:
    """What teammates share."""

    folder: Path
    remote: str
    """The section of DVC's configuration that names the store."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def hub(self) -> Path:
        return self.folder / "hub.git"

    def found(self, template: Path) -> Work:
        """The first member: a built project whose pictures are tracked, pushed to git but not yet to the store."""
        work = Work(template).copy(self.folder / "a")
        work.write(".dvc/config", self.remote)
        work.git("add", ".")
        work.git("commit", "--quiet", "-m", "Remote")
        work.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.hub))
        work.git("remote", "add", "origin", str(self.hub))
        work.git("push", "--quiet", "--set-upstream", "origin", "main")
        return work

    def join(self, name: str) -> Work:
        """Another member's clone; the base is a folder that git does not keep."""
        root = self.folder / name
        subprocess.run(["git", "clone", "--quiet", str(self.hub), str(root)], check=True, env=environment())
        shutil.copytree(self.folder / "a/base", root / "base")
        return Work(root)


def local_remote(store: Path | str) -> str:
    return f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n"


def tracked(built: Path, root: Path) -> Path:
    """A copy of a built project whose pictures DVC keeps."""
    work = Work(built).copy(root)
    work.git("rm", "-r", "--quiet", "--cached", "datasets/cats")
    work.dvc("add", "--quiet", "datasets/cats")
    assert work.doit().ran == {}
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Pictures")
    return root


def start(work: Work, command: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / command), *arguments],
        cwd=work.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def told(text: str, word: str = "remote store") -> list[str]:
    """Lines that speak of the remote's trouble."""
    return [line for line in text.splitlines() if word in line]


def objects(store: Path) -> Mapping[str, Path]:
    return {path.parent.name + path.name: path for path in (store / "files/md5").glob("??/*")}


def check_store(store: Path) -> None:
    """Nothing in a store is damaged, and nothing names what is not there."""
    found = objects(store)
    for md5, path in found.items():
        if path.suffix != ".tmp":
            assert hashlib.md5(path.read_bytes()).hexdigest() == md5.removesuffix(".dir"), path
        if md5.endswith(".dir"):
            assert {row["md5"] for row in json.loads(path.read_bytes())} <= found.keys(), path
    for path in store.glob("runs/*/*/*"):
        if not path.name.endswith(".tmp"):
            assert {out["md5"] for out in yaml.safe_load(path.read_text())["outs"]} <= found.keys(), path
