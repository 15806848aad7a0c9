"""Names, texts and values that mean ill, on their way through the commands to a terminal."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from sdbuild.storage import terminal_text
from tests.conftest import BIN, Result, Work
from tests.tiny import make_pictures

BOMBS = (
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "x\rforged",
    "x\nforged: line",
    "photo\u202egnp",
    "a\u2028forged\u2029b\x85c\x9bd",
    "[red]markup[link=x] :cat:",
    "zero\u200bwidth\u2066\ufeff",
)


def run(work: Work, *command: str, env: dict[str, str] | None = None) -> Result:
    """Run a command and look at what it writes."""
    result = work.run(str(BIN / command[0]), *command[1:], code=None, env=env)
    for text in (result.out, result.err):
        bare = text.replace("\n", "")
        assert terminal_text.line(bare) == bare, (
            command,
            [line for line in text.split("\n") if terminal_text.line(line) != line],
        )
        assert not any(line.lstrip().startswith("forged") for line in text.split("\n")), (command, text)
    return result


def hostile_header(path: Path) -> None:
    header = {
        "__metadata__": {
            "sdbuild.recipe": BOMBS[0],
            "sdbuild.spec": json.dumps(
                {"train": {"steps": BOMBS[1], BOMBS[2]: BOMBS[3]}, "method": {"kind": BOMBS[4]}}
            ),
            **{f"sdbuild.{key}_version{bomb}": bomb for key, bomb in zip("abcdefgh", BOMBS, strict=True)},
            "sdbuild.version": BOMBS[4],
        },
        **{f"a{bomb}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for bomb in BOMBS},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def hostile(work: Work) -> Work:
    """A project with pictures, captions, a remote and an author of such names."""
    folder = work.root / "datasets/cats"
    made = make_pictures(work.root / "more", len(BOMBS) + 1, size=32, seed=5)
    for at, bomb in enumerate(BOMBS):
        made[at].rename(folder / f"{at}{bomb}.png")
        (folder / f"{at}{bomb}.txt").write_bytes(f"a cat {bomb.replace(chr(10), ' ')}".encode())
    (folder / "broken\x1b[2J\nforged.png").write_bytes(b"text \x1b]0;x\x07")
    (folder / "passed-over\x1b[2J.psd").write_bytes(b"x")
    work.git("config", "user.name", "A \x1b]0;x\x07 \u202e B")
    work.run("git", "remote", "add", "origin", "/nowhere")
    config = work.root / ".dvc/config"
    config.write_text(
        config.read_text()
        + "[core]\n    remote = r\x1b]0;x\x07\n['remote \"r\x1b]0;x\x07\"']\n    url = /nowhere/\x1b[2J\n"
    )
    return work


def test_no_command_writes_what_steers_a_terminal(hostile: Work) -> None:
    work = hostile
    assert run(work, "sdbuild", "check").code == 2
    assert run(work, "doit").code == 2
    (work.root / "datasets/cats/broken\x1b[2J\nforged.png").unlink()
    assert json.loads(run(work, "sdbuild", "plan", "--json").out)["steps"]
    done = run(work, "doit")
    assert done.code == 0, done
    work.git("add", "-A")
    author = {"GIT_AUTHOR_NAME": "\x1b]0;x\x07\u202eB", "GIT_COMMITTER_NAME": "C\x1b[2J"}
    work.run("git", "commit", "--quiet", "-m", "subject \x1b[2J\u202e\rforged", env=author)
    work.git("branch", "wild\u202ebranch")
    caption = work.root / f"datasets/cats/0{BOMBS[0]}.txt"
    caption.write_text("another \x9b31m cat \x1b[31m")
    for command in (
        ["check"],
        ["plan"],
        ["why", "cat:captions"],
        ["log"],
        ["diff"],
        ["diff", "nothing\x1b[2J"],
        ["gc"],
        ["push"],
        ["pull"],
        ["captions", "cat"],
        ["captions", "find", "cat", "cat"],
        ["captions", "replace", "cat", "cat", "dog\x1b[2J"],
        ["captions", "tags", "cat"],
        ["captions", "export", "cat", "out\x1b[2J.jsonl"],
        ["captions", "import", "cat", "out\x1b[2J.jsonl", "--dry-run"],
        ["compare", "cat", "nothing\x1b[2J"],
        ["probe", "cat", "--predict"],
        ["plam\x1b[2J"],
        ["why", "cat:trian\x1b[2J"],
        ["step", "cat:\x1b[2J"],
        ["check", "\udcff\x1b[2J"],
    ):
        run(work, "sdbuild", *command)
    for command in (
        ["log"],
        ["diff"],
        ["captions", "cat"],
        ["captions", "tags", "cat"],
        ["plan"],
    ):
        done = run(work, "sdbuild", *command, "--json")
        if done.code == 0:
            json.loads(done.out)
    for command in (["list", "--all"], ["info", "cat:train"], ["nothing\x1b[2J"], ["clean", "-n"]):
        run(work, "doit", *command)
    hostile_header(work.root / "wild.safetensors")
    (work.root / "\x1b[2J.safetensors").write_bytes(b"x")
    assert run(work, "sdbuild", "why", "wild.safetensors").code == 0
    assert run(work, "sdbuild", "why", "\x1b[2J.safetensors").code == 2


def test_values_of_recipes_are_shown_as_text(work: Work) -> None:
    for at, bomb in enumerate(BOMBS):
        work.recipe(
            f"r{at}",
            **{
                "train": {f"stepz{bomb}": 1, "optimizer": f"o{bomb}"},
                "base": {"model": f"base{bomb}"},
                "sample": {"prompts": [f"p{bomb}"], "scheduler": f"s{bomb}", "adapters": [{"path": f"a{bomb}"}]},
                "datasets": [{"path": f"datasets/{bomb}", "caption": {"from": f"c{bomb}"}}],
                f"key{bomb}": 1,
            },
        )
    matrix = {"sample.negative": [f"n{bomb}" for bomb in BOMBS]}
    work.recipe("m", matrix=matrix, sample={"prompts": [f"p{bomb}" for bomb in BOMBS]})
    work.recipe("w", method={"kind": "textual-inversion", "token": f"<{BOMBS[0]}>", "initial": BOMBS[1]})
    work.write("recipes/y.yaml", "base: {model: base}\n\x1b[2J: [")
    work.write("recipes/z.yaml", "base: &\u202e {model: base\u2028}\n? [a]\n: !x\u202e y\n")
    for command in (["sdbuild", "check"], ["sdbuild", "plan"], ["doit", "list", "--all"], ["doit", "w"]):
        run(work, *command)
    for path in (work.root / "recipes").glob("[rwyz]*.yaml"):
        path.unlink()
    for command in (["sdbuild", "check"], ["sdbuild", "plan"], ["doit", "list", "--all"], ["sdbuild", "compare", "m"]):
        run(work, *command)


def test_encodings_that_lack_letters_end_in_no_traceback(hostile: Work) -> None:
    (hostile.root / os.fsdecode(b"datasets/cats/\xff.png")).write_bytes(b"x")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    for command in (["check"], ["captions", "cat"]):
        run(hostile, "sdbuild", *command, env=ascii_only)
    no_unicode = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (["plan"], ["captions", "cat", "--json"]):
        run(hostile, "sdbuild", *command, env=no_unicode)
