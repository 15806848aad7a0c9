"""A recipe that is wrong stops itself and those that wait for it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import Work
from tests.tiny import make_pictures

ONE = {"train": {"steps": 1}, "sample": None}


def test_the_others_are_built_and_nothing_of_it_is_forgotten(built: Work, tmp_path: Path) -> None:
    work = built
    work.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    lock, stages = work.read("dvc.lock"), work.read("dvc.yaml")
    right = work.read("recipes/cat.yaml").decode()
    work.write("recipes/cat.yaml", right.replace("rank: 2", "rank: 0"))
    work.recipe("dog", **ONE)
    work.recipe("mixed", sample={"adapters": [{"recipe": "cat"}]}, train={"steps": 1})
    line = right.splitlines().index("  rank: 2") + 1

    found = work.doit(code=2)

    assert set(found.ran) == {f"dog:{kind}" for kind in ("images", "captions", "latents", "text", "train")}
    assert f"recipes/cat.yaml:{line}: method.rank: must be at least 1" in found.err
    assert "recipes/mixed.yaml:" in found.err
    assert "needs cat, which has errors" in found.err
    assert "failed: cat, mixed" in found.out
    for name, before in (("dvc.lock", lock), ("dvc.yaml", stages)):
        now = work.read(name).decode()
        assert [row for row in before.decode().splitlines() if "cat" in row and row not in now] == []
    assert work.doit("dog").out == "everything is up to date\n"
    assert "rank: must be at least 1" in work.doit("cat", code=2).err

    told = work.sdbuild("plan", code=2)
    assert "dog:train" in told.out
    assert "cat:train" not in told.out
    assert "recipes/cat.yaml" in told.err
    work.sdbuild("plan", "dog")
    work.sdbuild("check", "dog")
    assert "dog.yaml is right" in work.sdbuild("check", code=2).out
    work.sdbuild("why", "dog:train")
    assert "method.rank" in work.sdbuild("why", "cat:train", code=2).err
    for command in ("log", "diff", "push", "pull"):
        work.sdbuild(command)
    assert work.adapter("cat")
    garbage = work.sdbuild("gc", "--delete").out
    assert "nothing else" in garbage or "cat" not in garbage

    work.write("recipes/cat.yaml", right)
    (work.root / "recipes/mixed.yaml").unlink()
    assert work.doit().out == "everything is up to date\n"


def test_files_that_make_no_recipe(work: Work) -> None:
    good = work.read("recipes/cat.yaml").decode()
    work.write("recipes/bytes.yaml", b"\xff\xfe\x00")
    work.write("recipes/Run.yaml", good)
    work.write("recipes/clean.yaml", good)
    work.write("recipes/old.yml", good)
    work.write("recipes/a=b.yaml", good)
    work.write("recipes/lost.yaml", f"extends: _gone.yaml\n{good}")
    (work.root / "recipes/_folder.yaml").mkdir()
    work.write("recipes/in-folder.yaml", f"extends: _folder.yaml\n{good}")
    work.write("recipes/sweep.yaml", f"{good}matrix: {{method.rnk: [1, 2]}}\n")
    wrong = ("bytes.yaml", "Run.yaml", "clean.yaml", "old.yml", "a=b.yaml", "lost.yaml", "in-folder.yaml", "sweep.yaml")

    told = work.sdbuild("plan", code=2)

    assert all(f"recipes/{name}" in told.err for name in wrong), told.err
    assert "cat:train" in told.out
    assert "images" in work.doit("cat:images").out
    listed = work.doit("list").out
    assert "cat" in listed
    assert "bytes" in listed
    assert all(f"recipes/{name}" in work.sdbuild("check", code=2).err for name in wrong)


def test_a_plan_without_pictures_or_captions_says_so(empty: Work) -> None:
    (empty.root / "datasets/cats").mkdir(parents=True)
    empty.recipe()
    told = empty.sdbuild("plan", code=2)
    assert "datasets/cats: holds no pictures" in told.err
    assert "of" not in told.out.replace("because", "").split()
    for number in range(9):
        empty.write(f"datasets/cats/{number}.png", bytes([number] * 64))
    told = empty.sdbuild("plan", code=2)
    assert told.err.count("no caption") == 3
    assert "and 6 more; `sdbuild check cat`" in told.err
    assert "cannot run" in told.out


def test_weights_far_apart_are_told_before_anything_is_built(work: Work) -> None:
    make_pictures(work.root / "datasets" / "dogs", 4, size=32, seed=7)
    work.recipe(
        datasets=[
            {"path": "datasets/cats", "trigger": "sks", "weight": 0.04},
            {"path": "datasets/dogs", "trigger": "sks", "weight": 1_000_000},
        ]
    )
    told = work.sdbuild("check", code=2).err
    assert re.search(r"recipes/cat\.yaml:\d+: datasets\[0\]\.weight: 0\.04 is so little", told), told
