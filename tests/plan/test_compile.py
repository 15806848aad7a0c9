from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild.plan.compile import VERSIONS, plan
from sdbuild.plan.model import STEP_KINDS, Step
from sdbuild.recipe.load import load_recipe
from tests.conftest import RECIPE


def steps(root: Path, **changes: Mapping[str, Any] | None) -> dict[str, Step]:
    content = {**RECIPE, "base": {"model": "org/base"}}
    for section, change in changes.items():
        content[section] = {**content.get(section, {}), **change} if change is not None else None
    (root / "recipes").mkdir(exist_ok=True)
    (root / "datasets/cats").mkdir(parents=True, exist_ok=True)
    path = root / "recipes/cat.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return {step.kind: step for step in plan(load_recipe(path, root))}


def test_steps_come_in_an_order_in_which_they_can_run(tmp_path: Path) -> None:
    made: set[str] = {"datasets/cats"}
    for step in steps(tmp_path).values():
        assert {dep.path for dep in step.deps} <= made
        made |= {out.path for out in step.outs}


def test_a_step_of_every_kind_has_a_version(tmp_path: Path) -> None:
    assert set(VERSIONS) == set(STEP_KINDS) == set(steps(tmp_path))
    assert all(step.spec["version"] == VERSIONS[step.kind] for step in steps(tmp_path).values())


def test_no_text_step_where_the_text_side_trains(tmp_path: Path) -> None:
    found = steps(tmp_path, method={"text_encoder": True})
    assert "text" not in found
    assert "text" in found["train"].components


def test_without_samples(tmp_path: Path) -> None:
    assert list(steps(tmp_path, sample=None))[-1] == "train"


@pytest.mark.parametrize(
    ("section", "change", "kinds"),
    [
        ("train", {"learning_rate": 0.5}, {"train"}),
        ("train", {"caption_dropout": 0.1}, {"text", "train"}),
        ("sample", {"guidance": 3}, {"samples"}),
        ("images", {"resolution": 64}, {"images", "samples"}),
        ("images", {"flip": True}, {"latents"}),
        ("images", {"on_error": "skip"}, {"images"}),
        ("method", {"rank": 3}, {"train", "samples"}),
    ],
)
def test_a_step_sees_only_its_part_of_the_recipe(
    tmp_path: Path, section: str, change: dict[str, Any], kinds: set[str]
) -> None:
    before, after = steps(tmp_path), steps(tmp_path, **{section: change})
    assert {kind for kind in before if before[kind].spec != after[kind].spec} == kinds


def test_no_parameter_has_a_name_that_dvc_leaves_out_of_its_run_cache(tmp_path: Path) -> None:
    def keys(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield key
                yield from keys(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    for step in steps(tmp_path).values():
        assert not {"size", "nfiles"} & set(keys(step.spec))
