"""Merging branches: what builds write never conflicts, and what either branch had built is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from sdbuild.build.blocks import join, split
from sdbuild.build.lockfile import dump_yaml, load_yaml
from sdbuild.build.merge import ATTRIBUTES, ensure_merge_driver, merged
from sdbuild.build.project import Project
from sdbuild.plan.compile import plan
from sdbuild.plan.files import dump_recipe_json, render_dvc_yaml
from sdbuild.plan.model import Step
from sdbuild.recipe.load import load_recipes
from tests.build.team import Team, local_remote
from tests.conftest import RECIPE, Work


def entry(recipe: str, kind: str = "train", **parts: Any) -> dict[str, Any]:
    return {"cmd": f"sdbuild step {recipe}:{kind}", **parts}


def lock(**stages: Any) -> str:
    return dump_yaml({"schema": "2.0", "stages": {name.replace("_", "-"): stage for name, stage in stages.items()}})


def steps(root: Path, name: str, **sections: Any) -> list[Step]:
    """The steps of a recipe, or of the variants of its matrix."""
    path = Work(root).write(
        f"recipes/{name}.yaml", yaml.safe_dump({**RECIPE, "base": {"model": "org/base"}, **sections})
    )
    return [step for recipe in load_recipes([path], root) for step in plan(recipe)]


def test_text_that_is_cut_and_joined_keeps_its_bytes(built_template: Path) -> None:
    text = (built_template / "dvc.lock").read_text()
    assert join(split(text)) == text
    assert list(split(text)["stages"]) == list(load_yaml(text)["stages"])
    odd = lock(a=entry("a", params={"x": "two\n\nlines\n", "y": "# no comment", "z": "stages:"}))
    assert join(split(odd)) == odd
    for broken, reason in (
        ("x\nstages:\n  a: 1\n", "before the first section"),
        ("stages:\n<<<<<<< a\n  a: 1\n", "not indented"),
        ("stages:\n  a: 1\n=======\n  b: 1\n", "not indented"),
        ("stages:\n  a: 1", "not whole"),
        ("a:\n  b: 1\n  b: 2\n", "twice"),
    ):
        with pytest.raises(ValueError, match=reason):
            split(broken)


def test_dvc_yaml_is_merged_to_what_a_build_would_write(tmp_path: Path) -> None:
    (tmp_path / "datasets/cats").mkdir(parents=True)
    ant, cat, small = (steps(tmp_path, name) for name in ("ant", "cat", "cat-2"))
    dog = steps(tmp_path, "dog", matrix={"method.rank": [2, 4]})
    empty, base = render_dvc_yaml([]), render_dvc_yaml(cat)
    left, right = render_dvc_yaml([*cat, *dog]), render_dvc_yaml([*ant, *small, *cat])
    both = render_dvc_yaml([*ant, *small, *cat, *dog])
    assert merged(base, left, right, name="dvc.yaml") == both
    assert merged(base, right, left, name="dvc.yaml") == both
    assert merged(base, empty, left, name="dvc.yaml") == render_dvc_yaml(dog)
    assert merged(base, base, empty, name="dvc.yaml") == empty
    assert merged("", render_dvc_yaml(dog), render_dvc_yaml(ant), name="dvc.yaml") == render_dvc_yaml([*ant, *dog])


def test_an_entry_that_both_changed_is_taken_whole() -> None:
    base = lock(a_train=entry("a", outs=[1]), b_train=entry("b", outs=[1]), c_train=entry("c", outs=[1]))
    ours = lock(a_train=entry("a", outs=[2]), b_train=entry("b", outs=[2]), c_train=entry("c", outs=[1]))
    theirs = lock(a_train=entry("a", outs=[3, 4]), c_train=entry("c", outs=[3]), d_train=entry("d", outs=[3]))
    stages = load_yaml(merged(base, ours, theirs, name="sub/dvc.lock"))["stages"]
    assert {name: stage["outs"] for name, stage in stages.items()} == {
        "a-train": [2],
        "b-train": [2],  # deleted by the one, changed by the other
        "c-train": [3],
        "d-train": [3],
    }


def test_resolved_recipes_are_merged_by_key() -> None:
    def recipe(rate: float, steps: int, model: str, commit: str) -> str:
        train = {"rate": rate, "steps": steps}
        return dump_recipe_json({"base": {"model": model, "commit": commit}, "recipe": {"train": train}})

    base, ours = recipe(1e-4, 10, "m", "1"), recipe(1e-5, 10, "m", "2")
    both = merged(base, ours, recipe(1e-4, 20, "n", "3"), name="build/cat/recipe.json")
    assert both == recipe(1e-5, 20, "m", "2"), "a commit belongs to its model"


@pytest.mark.parametrize(
    ("name", "base", "ours", "theirs"),
    [
        ("dvc.lock", lock(a=entry("a")), "<<<<<<<\n", lock(b=entry("b"))),
        ("dvc.lock", lock(a=entry("a")), lock(a=[1]), "schema: '2.0'\nstages:\n  a: [\n"),
        ("dvc.yaml", "stages:\n  a:\n    cmd: x\n", "stages:\n  a:\n    cmd: y\n", "stages:\n  a:\n    cmd: z\n"),
        ("build/a/recipe.json", "{}\n", "[1]\n", '{"a": 1}\n'),
        ("build/a/recipe.json", "{}\n", '{"a": 2,}\n', '{"a": 1}\n'),
        ("notes.txt", "a\n", "b\n", "c\n"),
    ],
)
def test_what_sdbuild_did_not_write_is_left_to_git(
    tmp_path: Path, name: str, base: str, ours: str, theirs: str
) -> None:
    work = Work(tmp_path)
    for side, text in (("base", base), ("ours", ours), ("theirs", theirs)):
        work.write(side, text)
    work.sdbuild("merge-file", "base", "ours", "theirs", name, code=1)
    text = work.read("ours").decode()
    assert "<<<<<<< ours" in text
    for side in (ours, theirs):
        assert set(side.splitlines()) <= set(text.splitlines()), "a side is lost"


def test_edits_that_git_can_merge_are_merged(tmp_path: Path) -> None:
    """A `dvc.yaml` of somebody's own: lines far apart."""
    work = Work(tmp_path)
    lines = [f"# {number}\n" for number in range(9)]
    work.write("base", "".join(lines))
    work.write("ours", "".join(["# ours\n", *lines[1:]]))
    work.write("theirs", "".join([*lines[:-1], "# theirs\n"]))
    work.sdbuild("merge-file", "base", "ours", "theirs", "dvc.yaml")
    assert work.read("ours").decode() == "".join(["# ours\n", *lines[1:-1], "# theirs\n"])


def test_a_clone_learns_the_driver_once(tmp_path: Path) -> None:
    work = Work(tmp_path / "project")
    work.root.mkdir()
    assert not ensure_merge_driver(Project(work.root)), "no git here"
    work.git("init", "--quiet")
    work.git("commit", "--quiet", "--allow-empty", "-m", "Start")
    work.git("worktree", "add", "--quiet", "../tree")
    assert ensure_merge_driver(Project(tmp_path / "tree"))
    assert not ensure_merge_driver(Project(work.root / "sub"))
    assert work.git("config", "merge.sdbuild.driver").out == "sdbuild merge-file %O %A %B %P\n"
    (work.root / ".git/config").write_text('[merge "sdbuild"]\n\tdriver = mine\n')
    assert not ensure_merge_driver(Project(work.root))


class Clones(NamedTuple):
    """Two clones of a bare repository that share a store."""

    ours: Work
    """On its branch `slow`, which adds a recipe and changes `cat`."""
    theirs: Work
    """Has pushed `dog`, which adds a recipe, and `fast`, which changes `cat`."""


@pytest.fixture(scope="module")
def clones(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Clones:
    folder = tmp_path_factory.mktemp("team")
    team = Team(folder, local_remote(folder / "store"))
    first = team.found(built_template)
    assert ".gitattributes" in first.sdbuild("init").out
    assert first.read(".gitattributes").decode().splitlines() == list(ATTRIBUTES)
    commit(first, "Attributes")
    first.git("push", "--quiet")
    first.sdbuild("push")
    clones = Clones(ours=team.join("ours"), theirs=team.join("theirs"))
    build_branch(clones.theirs, "dog", dog={})
    build_branch(clones.theirs, "fast", cat={"train": {"learning_rate": 2e-3}})
    build_branch(clones.ours, "slow", ant={}, cat={"train": {"learning_rate": 5e-4}})
    for work in clones:
        assert work.git("config", "merge.sdbuild.driver").out == "sdbuild merge-file %O %A %B %P\n"
        work.sdbuild("push")
    clones.ours.git("fetch", "--quiet")
    return clones


def build_branch(work: Work, branch: str, **recipes: Any) -> None:
    work.git("checkout", "--quiet", "-b", branch, "origin/main")
    for recipe, changes in recipes.items():
        work.recipe(recipe, **changes)
    assert work.doit().ran
    commit(work, branch)
    work.git("push", "--quiet", "origin", branch)


def commit(work: Work, message: str) -> None:
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", message)


def assert_settled(work: Work) -> None:
    """Nothing is stale, DVC agrees, and git has nothing to commit."""
    assert work.doit().ran == {}
    assert "up to date" in work.dvc("status").out
    assert work.git("status", "--porcelain").out == ""


def test_clones_that_built_recipes_of_their_own(clones: Clones, tmp_path: Path) -> None:
    work = clones.ours.copy(tmp_path / "project")
    work.git("merge", "--quiet", "-m", "Merge", "origin/dog")
    work.dvc("status")
    assert_settled(work)
    assert [name.partition("-")[0] for name in load_yaml(work.read("dvc.lock").decode())["stages"]] == [
        name for name in ("ant", "cat", "dog") for _ in range(6)
    ]
    assert work.adapter("dog") == clones.theirs.adapter("dog")
    tree = work.git("rev-parse", "HEAD^{tree}").out
    work.git("checkout", "--quiet", "-b", "dog", "origin/dog")
    work.git("rebase", "--quiet", "slow~1")
    assert work.git("rev-parse", "HEAD^{tree}").out == tree, "a rebase comes to the same"
    assert_settled(work)


def test_clones_that_changed_the_same_recipe(clones: Clones, tmp_path: Path) -> None:
    work, fast = clones.ours.copy(tmp_path / "project"), clones.theirs
    slow = work.adapter()
    assert slow != fast.adapter()
    result = work.run("git", "merge", "origin/fast", code=1)
    assert result.out.count("CONFLICT") == 1
    assert "recipes/cat.yaml" in result.out
    for side, adapter in (("--theirs", fast.adapter()), ("--ours", slow), ("--theirs", fast.adapter())):
        work.git("checkout", side, "recipes/cat.yaml")
        assert work.doit().ran == {}
        assert work.adapter() == adapter
        assert "up to date" in work.dvc("status").out
    rate = yaml.safe_load((work.root / "recipes/cat.yaml").read_text())["train"]["learning_rate"]
    assert json.loads(work.read("build/cat/recipe.json"))["recipe"]["train"]["learning_rate"] == rate
    commit(work, "Merge")
    assert_settled(work)


def test_a_clone_without_the_driver_merges_text(clones: Clones, tmp_path: Path) -> None:
    """As before there was one: nothing is lost, and `sdbuild init` sets the driver up."""
    work = Work(tmp_path / "clone")
    Work(tmp_path).git("clone", "--quiet", "--branch", "slow", str(clones.ours.root), str(work.root))
    clones.theirs.git("push", "--quiet", str(work.root), "fast")
    result = work.run("git", "merge", "fast", code=1)
    assert "CONFLICT (content): Merge conflict in dvc.lock" in result.out
    work.git("merge", "--abort")
    assert "merge driver" in work.sdbuild("init").out
    assert work.run("git", "merge", "fast", code=1).out.count("CONFLICT") == 1
