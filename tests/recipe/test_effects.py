"""Each key of a recipe changes what is built, or it is told: none is silently without effect.

The keys are those of the models, so one that is added is walked too. Its change has to show in the parameters that a
step is recorded with, or in where the base comes from; or the recipe is refused, or its change is told.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sdbuild.plan.compile import plan
from sdbuild.recipe.methods import SPECS
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.path import FieldPath, dotted

HOW = {
    "remote.lookup": "whom a build asks before it runs a step",
    "base.family": "is compared with the base, and refused where it is another",
    "base.prediction_type": "is compared with the base, or says what a single file does not",
    "base.allow_pickle": "lets a .ckpt be read, and is refused elsewhere",
    "train.trackers": "who is told",
    "method.prior.offload": "where networks are while class pictures are drawn",
    "matrix": "becomes variants",
    "name": "is the file's",
    **{
        f"datasets[0].caption.{key}": "how models are asked, on which no caption depends"
        for key in (
            *("base_url", "key_variable", "parallel", "attempts", "timeout", "batch", "prices", "prices.input"),
            *("prices.output", "max_cost", "max_images", "device", "max_tokens"),
        )
    },
}
"""Keys that decide about no result, with what they do."""
SMALL: dict[str, Any] = {
    "name": "cat",
    "base": {"model": "emoji-64"},
    "datasets": [{"path": "datasets/cats", "trigger": "sks", "holdout": 1}],
    "sample": {"prompts": ["sks cat"]},
}
CAPTIONERS: dict[str, dict[str, Any]] = {
    "sidecar": {},
    "filename": {},
    "template": {"text": "a {stem}"},
    "jsonl": {},
    "anthropic": {"model": "m", "instruction": "{tags}", "max_cost": 1.0, "prices": {"input": 1.0, "output": 1.0}},
    "openai": {"model": "m", "instruction": "{tags}", "max_cost": 1.0, "prices": {"input": 1.0, "output": 1.0}},
    "transformers": {"model": "a/b", "revision": "0" * 40, "instruction": "{tags}"},
}
PARTS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"tokens": [{"token": "sks"}]},
    "pivotal": {"tokens": [{"token": "sks"}]},
    "partial": {"layers": ["attn1"]},
}
"""What else a kind needs."""


def contexts() -> Iterator[dict[str, Any]]:
    """Recipes in which every model of the schema stands somewhere, with the keys around that give it a meaning."""

    def with_(**sections: Any) -> dict[str, Any]:
        return {**copy.deepcopy(SMALL), **sections}

    def data(**more: Any) -> list[dict[str, Any]]:
        return [{**SMALL["datasets"][0], **more}]

    yield with_()
    yield with_(base={"model": "a/b", "refiner": "a/c"}, sample={"prompts": ["sks"], "refine_from": 0.5})
    yield with_(base={"model": "file.safetensors"})
    yield with_(images={"crop": "random", "crops": 2})
    yield with_(datasets=[*data(repeats=2), {"path": "datasets/dogs"}])
    yield with_(datasets=[*data(weight=2.0), {"path": "datasets/dogs", "weight": 1.0}])
    yield with_(datasets=data(tags={"dropout": 0.5}, resolutions=[512]))
    for mask in ({"from": "alpha"}, {"from": "sidecar"}, {"from": "folder", "folder": "masks"}):
        yield with_(datasets=data(mask=mask))
    for kind, caption in CAPTIONERS.items():
        yield with_(datasets=data(caption={"from": kind, **caption}))
    yield with_(datasets=data(caption={"from": "openai", "model": "m", "chain": [{"instruction": "{caption}"}]}))
    for spec in SPECS:
        kind = spec.model_fields["kind"].default
        yield with_(method={"kind": kind, **PARTS.get(kind, {})})
    for prior in ("pictures", "prediction"):
        yield with_(method={"kind": "dreambooth_lora", "prior": {"from": prior, "prompt": "a cat"}})
    yield with_(method={"kind": "full", "extract": {"rank": 4}})
    for kind in ("lora", "dreambooth_lora"):
        yield with_(method={"kind": kind, "dora": True})
    yield with_(method={"kind": "pivotal", "tokens": [{"token": "sks"}], "lora": {"kind": "lora", "dora": True}})
    yield with_(method={"kind": "lora", "text_encoder": True, "timestep_ranks": {"least": 0.25}}, train={"ema": {}})
    yield with_(method={"kind": "lora", "parts": [{"modules": "attn1", "rank": 2, "alpha": 2.0}]})
    yield with_(train={"schedule": "polynomial", "warmup": 3})
    yield with_(train={"schedule": "restarts", "cycles": 2})
    yield with_(train={"noise": {"pyramid": 0.5}, "validate_every": 10, "early_stop": {}})
    yield with_(train={"save_every": 10, "save_most": 2}, sample={"prompts": ["sks"], "every": 10})
    for loss in ("huber", "smooth-l1"):
        yield with_(train={"loss": {"kind": loss}})
    yield with_(train={"weighting": {"kind": "min-snr"}})
    for timesteps in ("uniform", "logit-normal", "mode", "cosmap"):
        yield with_(train={"timesteps": {"kind": timesteps}})
    yield with_(train={"validate_every": 10})
    for other in ({"path": "loras/a.safetensors"}, {"recipe": "horse"}):
        yield with_(sample={"prompts": ["sks"], "adapters": [other]})


def leaves(model: BaseModel, path: FieldPath = ()) -> Iterator[tuple[BaseModel, FieldPath, FieldInfo, Any]]:
    """Path, declaration and value of every key of a recipe, deepest sections too."""
    for name, field in type(model).model_fields.items():
        value, at = getattr(model, name), (*path, field.alias or name)
        yield model, at, field, value
        for index, each in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(each, BaseModel):
                yield from leaves(each, (*at, index) if isinstance(value, tuple) else at)


ODD: dict[str, list[Any]] = {
    "path": ["datasets/birds", "loras/b.safetensors"],
    "model": ["c/d", "folder/", "./folder", "other.safetensors"],
    "background": ["black"],
    "scheduler": ["ddim"],
    "revision": ["1" * 40],
    "layers": [[1.0, 1.0], ["attn2"]],
    "targets": [["to_q"], "attention"],
    "resolution": [256],
    "resolutions": [[256]],
    "prompts": [["another"]],
    "instruction": ["say {tags} {folder}"],
    "text": ["{folder}"],
    "base_url": ["http://localhost:1/v1"],
    "key_variable": ["OTHER_KEY"],
    "tags_file": [".words"],
    "extra": [{"top_k": 1}],
    "replace": [{"a": "b"}],
    "tokens": [[{"token": "<other>"}]],
    "recipe": ["dog"],
    "config": ["emoji-64"],
    "vae": ["a/vae"],
    "refiner": ["a/d"],
    "folder": ["other"],
    "step": [8],
    "prior": [{"from": "prediction", "prompt": "a cat"}],
    "chain": [[{"instruction": "{caption}!"}]],
    "caption": [{"from": "filename"}],
    "mask": [{"from": "alpha"}],
    "tags": [{"dropout": 0.5}],
    "parts": [[{"modules": "attn2", "rank": 3}]],
    "adapters": [[{"path": "loras/c.safetensors"}]],
    "trackers": [["wandb"]],
    "matrix": [{"train.seed": [7]}],
    "prices": [{"input": 2.0, "output": 2.0}],
    "modules": ["attn2"],
    "early_stop": [{"patience": 2}],
    "ema": [{"decay": 0.5}],
    "extract": [{"rank": 2}],
    "timestep_ranks": [{"least": 0.25}],
    "sample": [None],
    "datasets": [[{"path": "datasets/birds"}]],
    "every": [20],
}
"""Other values of keys whose type does not say which there are."""


def others(key: str, field: FieldInfo, value: Any) -> Iterator[Any]:
    """Other values that a key may have."""
    yield from ODD.get(key, ())
    for kind, bounds in kinds(field.annotation, tuple(field.metadata)):
        if kind is bool:
            yield not value
        elif kind in (int, float):
            yield from numbers(kind, bounds, value)
        elif kind is str:
            yield from ("other", f"{value}x")
        elif get_origin(kind) is not tuple and hasattr(kind, "__args__"):
            yield from (each for each in get_args(kind) if isinstance(each, str) and each != value)
        elif get_origin(kind) is tuple:
            inner = next(iter(kinds(get_args(kind)[0], ())), (str, ()))
            yield from ([each] for each in numbers(inner[0], inner[1], 0)) if inner[0] in (int, float) else (["other"],)


def kinds(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Simple types in an annotation, with the bounds that stand beside them."""
    if hasattr(annotation, "__metadata__"):
        extra = [inner for each in annotation.__metadata__ for inner in getattr(each, "metadata", [each])]
        yield from kinds(get_args(annotation)[0], (*metadata, *extra))
    elif get_origin(annotation) in (UnionType, Union):
        for each in get_args(annotation):
            yield from kinds(each, metadata)
    else:
        yield annotation, metadata


def numbers(kind: Any, bounds: tuple[Any, ...], value: Any) -> Iterator[Any]:
    """Numbers that keep to bounds, other than a value; the nearest ones first."""
    now = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    step: Any = next((each.multiple_of for each in bounds if isinstance(each, MultipleOf)), 1)
    tried = [now + step, now - step, now * 2, now / 2, now + 0.25, now - 0.25, 2, 3, 16, 0.5, 0.1]
    for number in dict.fromkeys(kind(each) for each in tried):
        if number != value and all(_keeps(each, number) for each in bounds):
            yield number


def _keeps(bound: Any, number: Any) -> bool:
    if isinstance(bound, Ge):
        return bool(number >= bound.ge)
    if isinstance(bound, Gt):
        return bool(number > bound.gt)
    if isinstance(bound, Le):
        return bool(number <= bound.le)
    return not isinstance(bound, Lt) or bool(number < bound.lt)


def put(data: Any, path: FieldPath, value: Any) -> Any:
    """Data with one key set."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        return [put(each, rest, value) if index == first else each for index, each in enumerate(data)]
    return {**(data or {}), first: put((data or {}).get(first, {} if rest else None), rest, value)}


def outcome(recipe: Recipe) -> str:
    """All that results depend on: the parameters of every step, what it reads and where the base comes from."""
    steps = [[step.name, step.spec, [dep.path for dep in step.deps], step.base.stated()] for step in plan(recipe)]
    return json.dumps([steps, [step.components for step in plan(recipe)]], sort_keys=True, default=str)


def read(data: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(json.loads(json.dumps(data)))


def test_every_key_changes_what_is_built_or_is_told() -> None:
    walked: dict[str, set[str]] = {}
    for context in contexts():
        before = read(context)
        told_before = set(before.warnings())
        for owner, path, field, value in leaves(before):
            if path[-1] in ("kind", "from") or isinstance(value, BaseModel):
                continue
            effects = walked.setdefault(f"{dotted(path)} ({type(owner).__name__})", set())
            for other in others(str(path[-1]), field, value):
                data = put(context, path, other)
                try:
                    after = read(data)
                except ValidationError:
                    continue
                if outcome(after) != outcome(before):
                    effects.add("changes")
                    break
                effects.add("told" if set(after.warnings()) - told_before else "nothing")
    silent = sorted(key for key, effects in walked.items() if "changes" not in effects and key.split()[0] not in HOW)
    assert not silent, "these change nothing: say in HOW what they are for, or tell it in recipe/unused_settings.py"
    assert len(walked) > 200
    assert HOW.keys() <= {key.split()[0] for key in walked}


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"train": {"validate": 8}, "datasets": [{"path": "datasets/cats"}]}, "train.validate"),
    ({"train": {"noise": {"pyramid_levels": 3}}}, "train.noise.pyramid_levels"),
    ({"train": {"learning_rate": 0.5, "learning_rates": {"denoiser": 0.25}}}, "train.learning_rate"),
    ({"train": {"checkpoint_every": 9000}}, "train.checkpoint_every"),
    ({"train": {"weight_decay": 1e-9, "learning_rate": 1e-9}}, "train.weight_decay"),
    ({"method": {"kind": "lokr", "full": True, "rank": 3}}, "method.rank"),
    ({"method": {"kind": "lokr", "full": True, "alpha": 3.0}}, "method.alpha"),
    ({"method": {"kind": "hypernetwork", "layers": [1, 1], "activation": "relu"}}, "method.activation"),
    ({"method": {"kind": "hypernetwork", "layers": [1, 1], "dropout": 0.1}}, "method.dropout"),
    ({"datasets": [{"path": "datasets/cats", "weight": 3.0}]}, "datasets[0].weight"),
    ({"datasets": [{"path": "datasets/cats", "tags": {"variants": 1}}]}, "datasets[0].tags.variants"),
    (
        {"datasets": [{"path": "datasets/cats", "caption": {"from": "openai", "model": "m", "tags_file": ".words"}}]},
        "datasets[0].caption.tags_file",
    ),
    ({"sample": {"prompts": ["sks"], "negative": "blurry", "guidance": 1.0}}, "sample.negative"),
    ({"sample": {"prompts": ["sks"], "strengths": [0.0]}}, "sample.strengths"),
    (
        {
            "method": {
                "kind": "dreambooth_lora",
                "prior": {"from": "pictures", "prompt": "a cat", "negative": "blurry", "guidance": 1.0},
            }
        },
        "method.prior.negative",
    ),
]
"""Settings that change nothing beside others."""
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train": {"power": 3.0}}, "train.power"),
    ({"train": {"cycles": 3}}, "train.cycles"),
    ({"train": {"schedule": "restarts", "cycles": 9, "steps": 10}}, "train.cycles"),
    ({"train": {"save_most": 3}}, "train.save_most"),
    ({"train": {"early_stop": {}}}, "train.early_stop"),
    ({"train": {"lora_plus_ratio": 4.0}, "method": {"kind": "loha"}}, "train.lora_plus_ratio"),
    ({"train": {"learning_rates": {"embeddings": 0.1}}}, "train.learning_rates.embeddings"),
    ({"images": {"crops": 3}}, "images.crops"),
    ({"sample": {"prompts": ["sks"], "refine_from": 0.5}}, "sample.refine_from"),
    ({"sample": {"prompts": ["sks"], "every": 5}}, "sample.every"),
    ({"base": {"model": "emoji-64", "revision": "main"}}, "base.revision"),
    (
        {"method": {"kind": "pivotal", "tokens": [{"token": "sks"}], "lora_from": 0.5}, "train": {"steps": 1}},
        "method.lora_from",
    ),
    ({"train": {"learning_rate": 5.0, "weight_decay": 1.0}}, "train.weight_decay"),
]


@pytest.mark.parametrize(("changes", "key"), IDLE, ids=[key for _, key in IDLE])
def test_what_changes_nothing_is_told(changes: dict[str, Any], key: str) -> None:
    told = [
        warning for warning in read({**SMALL, **changes}).warnings() if warning.startswith(f"{key} changes nothing")
    ]
    assert len(told) == 1


def test_what_cannot_change_anything_is_refused() -> None:
    for changes, key in REFUSED:
        with pytest.raises(ValidationError) as caught:
            read({**SMALL, **changes})
        paths = [
            dotted((*(part for part in each["loc"] if part not in KINDS), *path))
            for each in caught.value.errors()
            for path, _ in each.get("ctx", {}).get("broken", [])
        ]
        assert key in paths, (key, paths)


KINDS = {spec.model_fields["kind"].default for spec in SPECS}


def test_numbers_have_bounds() -> None:
    """No number may be so large that a build could only fail on it; infinities and what is no number are none."""
    unbounded = []
    for context in contexts():
        recipe = read(context)
        for _, path, field, value in leaves(recipe):
            if not any(kind in (int, float) for kind, _ in kinds(field.annotation, tuple(field.metadata))):
                continue
            for number in (10**30, 2**63, -(10**30), 1e300, float("inf"), float("nan")):
                try:
                    Recipe.model_validate(put(context, path, number))
                except ValidationError:
                    continue
                unbounded.append(f"{dotted(path)}: {number} ({value})")
    assert not unbounded


def test_the_walk_would_see_a_key_without_effect(tmp_path: Path) -> None:
    data = {**SMALL, "train": {"noise": {"pyramid_levels": 3}}}
    assert outcome(read(data)) != outcome(read(SMALL))
    assert outcome(read({**SMALL, "remote": {"lookup": "never"}})) == outcome(read(SMALL))
