"""A base that another recipe of the project builds: an input like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Work
from tests.tiny import make_pictures

CHECKPOINT = "build/big/adapter/big.safetensors"


@pytest.fixture
def two(empty: Work) -> Work:
    """A recipe `ant` on the checkpoint of `big`."""
    return prepared(empty)


@pytest.fixture(scope="module")
def both_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of `two`, built once."""
    work = prepared(Work(template).copy(tmp_path_factory.mktemp("both") / "project"))
    work.doit()
    return work.root


@pytest.fixture
def both(both_template: Path, tmp_path: Path) -> Work:
    """A copy of a project in which both are up to date."""
    return Work(both_template).copy(tmp_path / "project")


def prepared(work: Work) -> Work:
    make_pictures(work.root / "datasets" / "cats", 4, size=32)
    big(work)
    ant(work)
    return work


def full(work: Work, name: str, **sections: Any) -> None:
    work.recipe(name, method=None, **sections)
    with (work.root / f"recipes/{name}.yaml").open("a") as file:
        file.write("method: {kind: full}\n")


def big(work: Work, **train: object) -> None:
    full(work, "big", train=train, sample=None)


def ant(work: Work, **train: object) -> None:
    work.recipe("ant", base={"model": CHECKPOINT, "config": "base"}, train=train, sample=None)


def planned(work: Work, recipe: str) -> list[str]:
    return [step["name"] for step in json.loads(work.sdbuild("plan", recipe, "--json").out)["steps"]]


def test_it_is_built_first_and_what_it_changes_is_built_again(two: Work) -> None:
    before = two.plan()
    assert before["ant:latents"]["reasons"][-1] == "big:train runs first"
    assert two.sdbuild("check").out.count("is right") == 2
    assert {f"big:{kind}" for kind in ("images", "captions", "latents", "text", "train")} < set(planned(two, "ant"))
    assert all(name.startswith("big:") for name in planned(two, "big"))
    assert "did you mean ant?" in two.sdbuild("plan", "an", code=3).err
    told = two.doit().ran
    order = list(told)
    assert order.index("big:train") < order.index("ant:latents")
    assert "ant:train" in order
    assert "everything is up to date" in two.doit().out
    adapter, checkpoint = two.adapter("ant"), two.read(CHECKPOINT)

    big(two, learning_rate=2e-3)
    assert set(two.doit().ran) == {"big:train", "ant:train"}, "VAE and text encoder are the same"
    assert (two.adapter("ant"), two.read(CHECKPOINT)) != (adapter, checkpoint)
    big(two)
    assert two.doit().ran == {}
    assert (two.adapter("ant"), two.read(CHECKPOINT)) == (adapter, checkpoint)
    assert not two.dvc("status").out.count("changed")


def test_it_may_be_absent_while_nothing_needs_it(both: Work) -> None:
    shutil.rmtree(both.root / "build/big/adapter")
    shutil.rmtree(both.root / ".sdbuild")
    assert both.doit("ant").ran == {}
    shutil.rmtree(both.root / "build/big/adapter")
    ant(both, learning_rate=1e-4)
    assert set(both.doit("ant").ran) == {"ant:train"}


def test_dvc_builds_it_first_too(both: Work) -> None:
    before = both.adapter("ant")
    big(both, learning_rate=2e-3)
    assert both.doit("ant:images").ran == {}, "dvc.yaml is as the recipes are"
    both.dvc("repro", "ant-train")
    assert both.adapter("ant") != before
    assert "everything is up to date" in both.doit().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("build/big/adapter/big.ckpt", "allow_pickle"),
        ("build/big/adapter/pig.safetensors", f"recipe big builds {CHECKPOINT}; name that"),
        ("build/big/adapters/step-000003/big-000003.safetensors", f"recipe big builds {CHECKPOINT}; name that"),
        ("build/pig/adapter/pig.safetensors", "file 'build/pig/adapter/pig.safetensors' does not exist"),
        ("build/dog/adapter/dog.safetensors", "recipe dog builds an adapter (lora) and no checkpoint"),
        ("build/ant/adapter/ant.safetensors", "is what this recipe builds; name another base"),
        ("./build/hen/adapter/hen.safetensors", "is what this recipe builds by way of hen; name another base"),
        ("build/sow/adapter/sow.safetensors", "recipe sow has variants; name what one of them builds, such as build/"),
    ],
)
def test_mistakes_are_told_before_anything_is_built(two: Work, model: str, message: str) -> None:
    two.recipe("dog")
    full(two, "sow", matrix={"train.seed": [1, 2]})
    full(two, "hen", base={"model": "build/ant/adapter/ant.safetensors"})
    full(two, "ant", base={"model": model, "config": "base"})
    told = two.doit("ant", code=2).err
    assert message in told
    assert "recipes/ant.yaml" in told
    assert not (two.root / "build").exists()


def test_probe_says_what_to_build_first(two: Work) -> None:
    assert "is what recipe big builds: run doit big:train first" in two.sdbuild("probe", "ant", code=3).err
