"""The command line as a user types it."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Work
from tests.tiny import make_pictures


def test_check_says_what_is_right(work: Work) -> None:
    assert "recipes/cat.yaml is right: 4 pictures" in work.sdbuild("check").out


def test_check_lists_mistakes_of_recipes_at_once(work: Work) -> None:
    work.recipe("dog", train={"stepz": 5}, method={"rank": "many"})
    work.recipe("Bad Name")
    result = work.sdbuild("check", code=2)
    assert "recipes/dog.yaml" in result.err
    assert "train.stepz: unknown key (did you mean steps?)" in result.err
    assert "method.rank" in result.err
    assert "Bad Name.yaml" in result.err


def test_check_lists_mistakes_of_data_at_once(work: Work) -> None:
    work.write("datasets/cats/0000.png", b"")
    work.write("datasets/cats/0001.png", b"text")
    result = work.sdbuild("check", code=2)
    assert "0000.png" in result.err
    assert "0001.png" in result.err
    assert not (work.root / "build").exists()


def test_check_of_one_recipe(work: Work) -> None:
    make_pictures(work.root / "datasets/dogs", 2, size=32)
    work.recipe("dog", datasets=[{"path": "datasets/dogs"}])
    assert "dog" not in work.sdbuild("check", "cat").out
    assert "did you mean cat?" in work.sdbuild("check", "kat", code=3).err


def test_plan_of_a_new_project(work: Work) -> None:
    plan = work.plan()
    assert list(plan) == [f"cat:{kind}" for kind in ("images", "captions", "latents", "text", "train", "samples")]
    assert plan["cat:images"]["reasons"] == ["never built"]
    assert {step["action"] for step in plan.values()} == {"run"}
    assert {name: step["items"]["todo"] for name, step in plan.items()} == {
        "cat:images": 4,
        "cat:captions": 4,
        "cat:latents": 4,
        "cat:text": 4,
        "cat:train": 4,
        "cat:samples": 2,
    }
    assert not (work.root / "dvc.yaml").exists(), "plan touches nothing"


def todo(work: Work) -> dict[str, int]:
    return {name: step["items"]["todo"] for name, step in work.plan().items()}


def test_a_picture_that_was_looked_at_is_not_encoded_by_that(work: Work) -> None:
    before = todo(work)
    work.sdbuild("check")
    assert todo(work) == {**before, "cat:images": 0}


def test_variants_make_together_what_they_share(work: Work) -> None:
    work.recipe(matrix={"method.rank": [1, 2]})
    plan = todo(work)
    assert [plan[f"cat@rank-1:{kind}"] for kind in ("images", "latents", "text")] == [4, 4, 4]
    assert [plan[f"cat@rank-2:{kind}"] for kind in ("images", "latents", "text")] == [0, 0, 0]


def test_what_a_build_would_encode_is_known_before_pictures_are_listed(built: Work) -> None:
    built.recipe("dog", train={"steps": 3})
    plan = todo(built)
    assert (plan["dog:images"], plan["dog:latents"], plan["dog:text"]) == (0, 0, 0)
    make_pictures(built.root / "more", 1, size=32, seed=9)[0].rename(built.root / "datasets/cats/new.png")
    (built.root / "datasets/cats/new.txt").write_text("a new cat")
    (built.root / "datasets/cats/0000.txt").write_text("another cat")
    plan = todo(built)
    assert (plan["cat:images"], plan["cat:captions"], plan["cat:latents"], plan["cat:text"]) == (1, 2, 1, 2)
    assert (plan["dog:latents"], plan["dog:text"]) == (0, 0), "cat makes them"
    built.recipe("dog", images={"resolution": 24})
    plan = todo(built)
    assert (plan["dog:latents"], plan["dog:text"]) == (5, 0)


def test_plan_for_people(built: Work) -> None:
    built.recipe(train={"learning_rate": 5e-4})
    out = built.sdbuild("plan").out
    assert "param train.learning_rate: 0.001 -> 0.0005" in out
    assert "cat:samples" in out


def test_why(built: Work) -> None:
    fresh = built.sdbuild("why", "cat:train").out
    assert fresh.startswith("cat:train is fresh")
    assert "train.learning_rate: 0.001" in fresh
    built.recipe(train={"learning_rate": 5e-4})
    assert "param train.learning_rate: 0.001 -> 0.0005" in built.sdbuild("why", "cat:train").out
    assert "did you mean cat:train?" in built.sdbuild("why", "cat:trian", code=3).err


def test_schema_is_json(work: Work) -> None:
    schema = json.loads(work.sdbuild("schema").out)
    assert "train" in schema["properties"]


@pytest.mark.parametrize("arguments", [["build"], [], ["why"]])
def test_wrong_usage(work: Work, arguments: list[str]) -> None:
    assert "usage: sdbuild" in work.sdbuild(*arguments, code=3).err


def test_outside_a_project(work: Work) -> None:
    outside = Work(work.root.parent)
    assert "sdbuild init" in outside.sdbuild("plan", code=3).err


def test_step_that_does_not_exist(built: Work) -> None:
    assert "no step cat:nothing" in built.sdbuild("step", "cat:nothing", code=3).err


def test_doit_list_info_clean_and_forget(built: Work) -> None:
    assert "cat" in built.doit("list").out
    assert "cat:train" in built.doit("list", "--all").out
    assert "up-to-date" in built.doit("info", "cat:train").out
    assert "would remove build/cat/adapter" in built.doit("clean", "--dry-run", "cat:train").out
    assert (built.root / "build/cat/adapter").exists()
    built.doit("clean", "cat:train")
    assert not (built.root / "build/cat/adapter").exists()
    assert built.doit().ran == {}
    built.doit("forget")
    assert built.doit().ran == {}


def test_doit_always_execute_runs_a_fresh_step(built: Work) -> None:
    adapter = built.adapter()
    assert set(built.doit("-a", "-s", "cat:train").ran) == {"cat:train"}
    assert built.adapter() == adapter


def test_one_step_and_what_it_needs(work: Work) -> None:
    assert set(work.doit("cat:latents").ran) == {"cat:images", "cat:latents"}


def test_doit_with_a_wrong_recipe(work: Work) -> None:
    work.recipe(train={"stepz": 5})
    result = work.doit(code=2)
    assert result.err.startswith("recipes/cat.yaml:")
    assert "did you mean steps?" in result.err


def test_no_library_chatters_on_the_screen(work: Work) -> None:
    result = work.doit()
    assert result.err == ""
    allowed = ("cat:", "6 steps ran", "adapter:", "grid:")
    assert all(line.startswith(allowed) for line in result.out.splitlines()), result.out
