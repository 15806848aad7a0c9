"""`matrix:` through the command line: variants are recipes of their own that share what was computed."""

from __future__ import annotations

import json

from tests.conftest import Swept, Work

ONE, TWO, THREE = "cat@rank-1", "cat@rank-2", "cat@rank-3"
STEPS = ("images", "captions", "latents", "text", "train", "samples")


def test_nothing_is_computed_twice(swept_template: Swept) -> None:
    ran = swept_template.first.ran
    assert set(ran) == {f"{variant}:{step}" for variant in (ONE, TWO) for step in STEPS}
    for step in ("images", "latents", "text"):
        assert {ran[f"{ONE}:{step}"], ran[f"{TWO}:{step}"]} == {0, 4}, "also when both are built at once"
    assert ran[f"{ONE}:train"] == ran[f"{TWO}:train"] == 4


def test_every_command_knows_variants(swept: Work) -> None:
    assert swept.doit().out == "everything is up to date\n"
    assert swept.doit(TWO).out == "everything is up to date\n"
    listed = {line.split()[0]: line for line in swept.doit("list").out.splitlines()}
    assert list(listed) == ["cat", ONE, TWO]
    assert listed["cat"].endswith("all 2 variants of recipes/cat.yaml")
    assert listed[TWO].endswith("recipes/cat.yaml with method.rank 2")
    assert {step["action"] for step in swept.plan().values()} == {"none"}
    assert list(swept.plan()) == [f"{variant}:{step}" for variant in (ONE, TWO) for step in STEPS]
    assert swept.sdbuild("check", "cat").out.splitlines()[-1] == "recipes/cat.yaml is right: 4 pictures, 2 variants"
    assert swept.sdbuild("check", TWO).out.splitlines()[-1] == "recipes/cat.yaml is right: 4 pictures"
    assert f"no recipe {THREE} (did you mean {TWO}?)" in swept.sdbuild("check", THREE, code=3).err
    assert swept.sdbuild("why", f"{TWO}:train").out.startswith(f"{TWO}:train is fresh")
    assert "no step cat:train (did you mean cat@rank-" in swept.sdbuild("why", "cat:train", code=3).err
    assert swept.adapter(ONE) != swept.adapter(TWO)
    assert json.loads(swept.read(f"build/{TWO}/recipe.json"))["recipe"]["method"]["rank"] == 2


def test_dvc_knows_variants(swept: Work) -> None:
    assert "up to date" in swept.dvc("status").out
    assert "Data and pipelines are up to date" in swept.dvc("repro").out
    shown = json.loads(swept.dvc("plots", "show", "--json").out)
    assert list(shown["data"]) == ["loss of cat", *(f"build/{name}/samples/grid.png" for name in (ONE, TWO))]
    (losses,) = shown["data"]["loss of cat"]
    drawn = {row["filename"] for row in losses["content"]["data"]["values"]}
    assert drawn == {f"{name}/loss.csv" for name in (ONE, TWO)}, "one curve a variant"
    metrics = json.loads(swept.dvc("metrics", "show", "--json").out)[""]["data"]
    assert list(metrics) == [f"build/{name}/metrics.json" for name in (ONE, TWO)]


def test_a_variant_comes_and_goes(swept: Work) -> None:
    kept = {name: swept.read(f"build/{name}/recipe.json") for name in (ONE, TWO)}
    swept.recipe(matrix={"method.rank": [1, 3]})
    ran = swept.doit(THREE).ran
    assert list(ran) == [f"{THREE}:{step}" for step in STEPS]
    assert ran[f"{THREE}:latents"] == ran[f"{THREE}:text"] == 0
    assert kept[ONE] == swept.read(f"build/{ONE}/recipe.json"), "the others are as they were"
    assert b"cat__rank-2-train" not in swept.read("dvc.lock")
    swept.recipe(matrix={"method.rank": [1, 2, 3]})
    assert "would remove" in swept.doit("clean", "-n", "cat").out
    swept.doit("clean", "cat")
    assert not (swept.root / f"build/{ONE}/adapter").exists()
    assert swept.doit("cat").ran == {}, "what was built once is restored"
    assert swept.read(f"build/{TWO}/recipe.json") == kept[TWO]
    swept.recipe()
    assert list(swept.doit().ran) == [f"cat:{step}" for step in STEPS], "without a matrix it is one recipe again"
