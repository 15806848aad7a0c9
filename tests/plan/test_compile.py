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

PRIOR: dict[str, Any] = {"kind": "dreambooth_lora", "prior": {"from": "pictures", "prompt": "cat"}}


def steps(root: Path, **changes: Mapping[str, Any] | None) -> dict[str, Step]:
    content = {**RECIPE, "base": {"model": "org/base"}}
    for section, change in changes.items():
        if section == "datasets":
            content[section] = [{**content[section][0], **(change or {})}]
        elif section == "method" and change and "kind" in change:
            content[section] = change
        else:
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
    found = steps(tmp_path, method={**PRIOR, "kind": "dreambooth", "extract": {"rank": 4}})
    assert list(VERSIONS) == list(STEP_KINDS) == list(found)
    assert all(step.spec["version"] == VERSIONS[step.kind] for step in found.values())


def test_a_training_that_a_later_version_left_as_it_was_keeps_the_earlier_one(tmp_path: Path) -> None:
    def version(**train: Any) -> Any:
        return steps(tmp_path, train=train)["train"].spec["version"]

    assert version(batch=1) == 2
    assert version(batch=2) == version(batch=1, accumulate=2) == VERSIONS["train"] == 3
    assert version(batch=1, weighting={"kind": "debiased"}) == version(batch=1, caption_dropout=0.1) == 3


def test_a_prior_concerns_the_steps_that_it_goes_through_and_no_others(tmp_path: Path) -> None:
    without, found = steps(tmp_path, method={"kind": "dreambooth_lora"}), steps(tmp_path, method=PRIOR)
    assert "prior" not in without
    for kind in ("images", "captions", "latents"):
        assert found[kind].spec == without[kind].spec
    assert {dep.path for dep in found["latents"].deps} - {dep.path for dep in without["latents"].deps} == {
        "build/cat/prior"
    }
    assert found["text"].spec["prior"] == "cat"
    assert found["train"].spec["method"]["prior"] == {"from": "pictures", "prompt": "cat", "weight": 1.0}
    more = steps(tmp_path, method=PRIOR | {"prior": PRIOR["prior"] | {"pictures": 7, "offload": True}})
    assert [kind for kind, step in more.items() if step.spec != found[kind].spec] == ["prior"]
    assert more["prior"].how == {"offload": True}
    kept = steps(tmp_path, method=PRIOR | {"prior": {"from": "prediction", "prompt": "cat"}})
    assert "prior" not in kept
    assert kept["text"].spec["prior"] == "cat"
    assert kept["latents"].deps == without["latents"].deps


def test_an_extraction_concerns_no_other_step(tmp_path: Path) -> None:
    without = steps(tmp_path, method={"kind": "full"})
    found, other = (steps(tmp_path, method={"kind": "full", "extract": {"rank": rank}}) for rank in (4, 8))
    assert found.keys() - without.keys() == {"extract"}
    assert all(found[kind].spec == without[kind].spec for kind in without)
    assert [kind for kind in without if found[kind].deps != without[kind].deps] == ["samples"]
    assert [kind for kind, step in other.items() if step.spec != found[kind].spec] == ["extract"]


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
        ("train", {"prediction": "v"}, {"train", "samples"}),
        ("train", {"prediction": "v", "noise": {"zero_terminal_snr": True}}, {"train", "samples"}),
        ("train", {"validate_every": 2}, {"train"}),
        ("train", {"save_every": 2}, {"train"}),
        ("sample", {"guidance": 3}, {"samples"}),
        ("images", {"resolution": 64}, {"images", "samples"}),
        ("images", {"flip": True}, {"latents"}),
        ("images", {"crop": "random", "crops": 2}, {"images"}),
        ("images", {"on_error": "skip"}, {"images"}),
        ("method", {"rank": 3}, {"train", "samples"}),
        ("datasets", {"resolutions": [32, 64]}, {"images"}),
        ("datasets", {"mask": {"from": "alpha"}}, {"images"}),
        ("datasets", {"mask": {"from": "alpha", "minimum": 0.5}}, {"images", "train"}),
        ("datasets", {"lines": True}, {"captions"}),
        ("datasets", {"tags": {"variants": 2}}, {"text", "train"}),
        ("datasets", {"weight": 2}, {"train"}),
        ("datasets", {"repeats": 2}, {"train"}),
    ],
)
def test_a_step_sees_only_its_part_of_the_recipe(
    tmp_path: Path, section: str, change: dict[str, Any], kinds: set[str]
) -> None:
    before, after = steps(tmp_path), steps(tmp_path, **{section: change})
    assert {kind for kind in before if before[kind].spec != after[kind].spec} == kinds


def test_settings_of_later_versions_are_no_parameters_until_they_are_set(tmp_path: Path) -> None:
    """What was built before these settings existed stays fresh."""
    found = {kind: step.spec for kind, step in steps(tmp_path).items()}
    dataset = {"path": "datasets/cats"}
    assert found["images"] == {
        "version": 2,
        "datasets": [{**dataset, "holdout": 1}],
        "resolution": 32,
        "buckets": {"step": 8, "max_aspect": 2.0},
        "crop": "center",
        "background": "white",
        "on_error": "fail",
    }
    assert found["captions"] == {
        "version": 1,
        "datasets": [{**dataset, "caption": {"from": "sidecar"}, "trigger": "sks"}],
    }
    assert found["latents"] == {
        "version": 1,
        "datasets": ["datasets/cats"],
        "flip": False,
        "background": "white",
        "dtype": "float32",
    }
    assert found["text"] == {"version": 1, "empty": False}
    assert found["train"]["datasets"] == [{"repeats": 1}]
    assert not {"prediction", "zero_terminal_snr", "every"} & found["samples"].keys()
    later = {"validate_every", "early_stop", "save_every", "save_most", "trackers"}
    assert not later & found["train"]["train"].keys()


def test_no_parameter_has_a_name_that_dvc_leaves_out_of_its_run_cache(tmp_path: Path) -> None:
    def keys(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield key
                yield from keys(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    mask = {"from": "sidecar", "minimum": 0.5}
    everything = {"tags": {}, "mask": mask, "weight": 2, "resolutions": [32], "lines": True}
    for step in steps(tmp_path, datasets=everything, images={"crop": "random", "crops": 2}).values():
        assert not {"size", "nfiles"} & set(keys(step.spec))
