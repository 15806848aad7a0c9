from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sdbuild.plan.files import HEADER, render_dvc_yaml, render_recipe_json, scalar
from sdbuild.plan.model import Base
from tests.plan.test_compile import steps


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
    assert train["plots"] == [{"build/cat/loss.csv": {"x": "step", "y": "loss"}}]


def test_recipe_json_holds_recipe_base_and_parameters(tmp_path: Path) -> None:
    found = list(steps(tmp_path).values())
    base = Base(model="org/base", revision="main", commit="c" * 40)
    content = json.loads(render_recipe_json("cat", {"train": {}}, base, found, {"cat:train": {"base": "digest"}}))
    assert content["base"]["commit"] == "c" * 40
    assert content["steps"]["train"]["reads"] == {"base": "digest"}
    assert content["steps"]["images"]["reads"] == {}
    assert content["steps"]["samples"]["prompts"] == ["a cat"]
