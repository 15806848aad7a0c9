from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sdbuild.plan.compile import plan_resolved
from sdbuild.plan.files import HEADER, render_dvc_yaml, render_recipe_json, scalar
from sdbuild.plan.model import Base
from sdbuild.recipe.load import load_recipe
from tests.plan.test_compile import steps

VARIANTS = ("cat@rank-4,learning_rate-0.001", "cat@rank-8,learning_rate-1")


@pytest.mark.parametrize(
    "text",
    [
        "datasets/cats",
        "a b",
        "yes",
        "1",
        "1e5",
        "x: y",
        "- x",
        "#x",
        "é/ü",
        'q"uote',
        "back\\slash",
        "",
        "~",
        "a:",
        "@x",
    ],
)
def test_scalars_are_read_back_as_the_same_string(text: str) -> None:
    from dvc.utils.serialize import parse_yaml

    assert yaml.safe_load(f"a: {scalar(text)}") == {"a": text}
    assert parse_yaml(f"- {scalar(text)}", "x.yaml") == [text]


def test_dvc_yaml_is_what_dvc_expects(tmp_path: Path) -> None:
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA

    found = list(steps(tmp_path).values())
    text = render_dvc_yaml(found)
    assert text.startswith(HEADER)
    content = yaml.safe_load(text)
    COMPILED_MULTI_STAGE_SCHEMA(content)
    train = content["stages"]["cat-train"]
    assert train["cmd"] == "sdbuild step cat:train"
    assert train["deps"] == ["build/cat/captions.jsonl", "build/cat/latents", "build/cat/text"]
    assert train["params"] == [{"build/cat/recipe.json": ["steps.train"]}]
    assert train["metrics"] == ["build/cat/metrics.json"]
    assert train["outs"] == ["build/cat/adapter", "build/cat/loss.csv"]
    assert content["plots"] == [
        {"build/cat/loss.csv": {"x": "step", "y": "loss"}},
        "build/cat/samples/grid.png",
    ]
    assert content["artifacts"] == {
        "cat": {
            "path": "build/cat/adapter/cat.safetensors",
            "type": "model",
            "desc": "lora adapter of org/base, recipe cat",
            "labels": ["lora", "org/base", "cat"],
        }
    }


def test_what_is_looked_at_on_the_way_is_an_out_and_a_plot(tmp_path: Path) -> None:
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA

    found = steps(tmp_path, train={"validate_every": 2, "save_every": 2}, sample={"every": 2})
    content = yaml.safe_load(render_dvc_yaml(found.values()))
    COMPILED_MULTI_STAGE_SCHEMA(content)
    outs = ["build/cat/adapter", "build/cat/adapters", "build/cat/loss.csv", "build/cat/validation.csv"]
    assert content["stages"]["cat-train"]["outs"] == outs
    assert content["stages"]["cat-samples"]["deps"] == outs[:2]
    assert content["plots"] == [
        {"build/cat/loss.csv": {"x": "step", "y": "loss"}},
        {"build/cat/validation.csv": {"x": "step", "y": ["adapter", "base"]}},
        "build/cat/samples/grid.png",
        "build/cat/samples/progress.png",
    ]
    resolved = load_recipe(tmp_path / "recipes/cat.yaml", tmp_path).resolved()
    variants = [step for name in VARIANTS for step in plan_resolved(name, resolved, Base(model="org/base"))]
    drawn = yaml.safe_load(render_dvc_yaml(variants))["plots"]
    each = {f"build/{name}/validation.csv": "adapter" for name in VARIANTS}
    assert drawn[1] == {"validation of cat": {"x": "step", "y": each}}


def test_variants_are_drawn_together(tmp_path: Path) -> None:
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
    from dvc.stage.utils import is_valid_name
    from gto.constants import name_re

    steps(tmp_path)
    resolved = load_recipe(tmp_path / "recipes/cat.yaml", tmp_path).resolved()
    found = [step for name in ("dog", *VARIANTS) for step in plan_resolved(name, resolved, Base(model="org/base"))]
    content = yaml.safe_load(render_dvc_yaml(found))
    COMPILED_MULTI_STAGE_SCHEMA(content)
    assert content["plots"][:2] == [
        {"build/dog/loss.csv": {"x": "step", "y": "loss"}},
        {"loss of cat": {"x": "step", "y": {f"build/{name}/loss.csv": "loss" for name in VARIANTS}}},
    ]
    assert content["plots"][2:] == [f"build/{name}/samples/grid.png" for name in ("dog", *VARIANTS)]
    assert list(content["artifacts"]) == ["dog", "cat__rank-4__learning_rate-0_001", "cat__rank-8__learning_rate-1"]
    assert all(name_re.search(name) for name in content["artifacts"])
    assert all(is_valid_name(name) for name in content["stages"])
    assert content["stages"]["cat__rank-8__learning_rate-1-train"]["cmd"] == f"sdbuild step {VARIANTS[1]}:train"


def test_a_thousand_stages_are_rendered_faster_than_read(tmp_path: Path) -> None:
    few = list(steps(tmp_path).values())
    many = [replace(step, recipe=f"cat@rank-{index}") for index in range(170) for step in few]
    began = time.process_time()
    rendered = render_dvc_yaml(many)
    written = time.process_time()
    assert len(yaml.load(rendered, yaml.SafeLoader)["stages"]) == 1020
    assert written - began < time.process_time() - written


def test_recipe_json_holds_recipe_base_and_parameters(tmp_path: Path) -> None:
    found = list(steps(tmp_path).values())
    base = Base(model="org/base", revision="main", commit="c" * 40)
    content = json.loads(render_recipe_json("cat", {"train": {}}, base, found, {"cat:train": {"base": "digest"}}))
    assert content["base"]["commit"] == "c" * 40
    assert content["steps"]["train"]["reads"] == {"base": "digest"}
    assert content["steps"]["images"]["reads"] == {}
    assert content["steps"]["samples"]["prompts"] == ["a cat"]
