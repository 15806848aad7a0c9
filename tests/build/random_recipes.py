"""Random recipes from the models of the schema, small enough to be built in a second or two on a tiny base."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sdbuild.recipe.messages import explain
from sdbuild.recipe.models import Recipe
from tests.tiny import make_lora, make_pictures, make_pipeline, make_refiner

BASES = ("sd1", "sd1", "sd2", "sdxl", "sd3", "sd1-v")
OFTEN = 0.3
"""How often a key is set that need not be."""
EXTREME = 0.12
"""How often a number is at one of its bounds."""
NEVER = {
    *(
        "name",
        "matrix",
        "extends",
        "trackers",
        "compile",
        "processes",
        "remote",
        "chain",
        "revision",
        "family",
        "config",
    ),
    *("prediction_type", "variant", "vae", "allow_pickle", "t5", "offload", "recipe", "prices"),
}
"""What needs a network, another machine, minutes, or other files."""
NEEDED = {
    *("method", "train", "sample", "images", "train.steps", "train.batch", "images.buckets", "images.resolution"),
    *("images.buckets.step", "sample.steps", "method.prior.steps", "method.prior.pictures"),
}
"""What is always set, since it would take long otherwise."""
PATTERNS = (
    "attn1",
    "attn2",
    "to_q",
    "to_k",
    "proj_in",
    "attn*",
    "conv1",
    "resnets.*",
    "q_proj",
    "fc1",
    "nothing_like_it",
)
WORDS = ("sks", "a red cat", "(a:1.2) rocket", "猫", "a photo of sks", "[x]", "cat, dog, tree, boat")
TOKENS = ("<toy>", "<x1>", "zzz", "<Ünï>")

Chance = random.Random


def _few(low: int, high: int) -> Callable[[Chance], int]:
    return lambda chance: chance.randint(low, high)


def _one(*values: Any) -> Callable[[Chance], Any]:
    return lambda chance: chance.choice(values)


def _some(*values: Any, most: int = 2) -> Callable[[Chance], list[Any]]:
    return lambda chance: chance.sample(values, chance.randint(1, min(most, len(values))))


OWN: Mapping[str, Callable[[Chance], Any]] = {
    "base.model": _one(*(f"bases/{name}" for name in BASES)),
    "base.refiner": _one("bases/refiner"),
    "base.clip_skip": _one(1, 2),
    "datasets.path": _one("datasets/a", "datasets/b"),
    "datasets.caption": _one(
        {"from": "sidecar"},
        {"from": "filename"},
        {"from": "template", "text": "a {stem} of {folder}"},
        {"from": "jsonl"},
    ),
    "datasets.trigger": _one("sks", "<toy>", "zzz", "<x1> <Ünï>", "a (b)"),
    "datasets.mask.folder": _one("masks"),
    "datasets.mask.suffix": _one(".mask"),
    "datasets.resolutions": _some(16, 32, 48, 64),
    "datasets.holdout": _few(0, 2),
    "datasets.repeats": _few(1, 3),
    "datasets.tags.variants": _few(1, 3),
    "datasets.tags.separator": _one(",", ";", " "),
    "images.resolution": _one(16, 32, 32, 48, 64),
    "images.buckets.step": _one(8, 8, 16, 32),
    "images.crops": _few(1, 3),
    "images.background": _one("black", "#12ab00", "grey"),
    "method.targets": lambda chance: (
        chance.choice(["default", "attention", "all-linear", "ia3"])
        if chance.random() < 0.5
        else chance.sample(PATTERNS, chance.randint(1, 3))
    ),
    "method.rank": _one(1, 2, 3, 4, 64),
    "method.layers": _some(*PATTERNS, most=3),
    "method.tokens.token": _one(*TOKENS),
    "method.tokens.start": _one("toy", "a red toy", "x"),
    "method.parts.modules": _one(*PATTERNS, "text_encoder*", "unet.*"),
    "method.prior.prompt": _one("a cat", "猫"),
    "method.prior.pictures": _few(1, 2),
    "method.prior.steps": _few(1, 2),
    "method.extract.rank": _one(1, 2, 300),
    "train.steps": _few(1, 3),
    "train.batch": _few(1, 3),
    "train.accumulate": _few(1, 2),
    "train.optimizer": _one(
        "adamw", "adafactor", "prodigy", "adamw-schedule-free", "came", "sgd", "adamw-8bit", "lion-8bit", "adamw-paged"
    ),
    "train.base_precision": _one(None, "float32", "bfloat16"),
    "train.precision": _one("float32", "float32", "bfloat16"),
    "train.validate": _few(1, 2),
    "train.warmup": _few(0, 2),
    "train.cycles": _few(1, 2),
    "train.validate_every": _few(1, 3),
    "train.save_every": _few(1, 3),
    "train.early_stop.patience": _few(1, 2),
    "sample.prompts": _some(*WORDS),
    "sample.seeds": _some(0, 1, 2**32 - 1),
    "sample.strengths": _some(0.0, 1.0, -1.0, 0.5, 3.0),
    "sample.steps": _few(1, 3),
    "sample.every": _few(1, 3),
    "sample.adapters.path": _one("loras/sd1.safetensors", "loras/surplus.safetensors", "loras/cut.safetensors"),
}
"""Values of keys for which the schema says too little, by path without the places in lists."""


def make_project(root: Path) -> None:
    """Write bases, pictures with captions and masks, and adapters from elsewhere."""
    from safetensors.torch import load_file, save_file

    for name in dict.fromkeys(BASES):
        family, _, kind = name.partition("-")
        make_pipeline(root / "bases" / name, family=family, prediction_type="v_prediction" if kind else None)
    make_refiner(root / "bases" / "refiner")
    for name, size, seed in (("a", (48, 64), 0), ("b", (64, 32), 1)):
        paths = make_pictures(root / "datasets" / name, 4, size=size, seed=seed)
        paths = [_named(path) for path in paths]
        rows = [f'{{"file_name": "{path.name}", "text": "picture {path.stem}, red, large"}}' for path in paths]
        rows += [f'{{"file_name": "masks/{path.name}", "text": "mask {path.stem}"}}' for path in paths]
        (root / "datasets" / name / "metadata.jsonl").write_text("\n".join(rows) + "\n")
        (root / "datasets" / name / "masks").mkdir()
        for path in paths:
            _mask(path, root / "datasets" / name / "masks" / path.name)
    (root / "loras").mkdir()
    lora = make_lora(root / "lora", root / "bases" / "sd1", text=True)
    state = load_file(lora)
    save_file(state, root / "loras" / "sd1.safetensors")
    extra = {
        key.replace("layers.1.", "layers.9."): tensor.clone() for key, tensor in state.items() if "layers.1." in key
    }
    save_file(state | extra, root / "loras" / "surplus.safetensors")
    (root / "loras" / "cut.safetensors").write_bytes(lora.read_bytes()[:400])
    (root / "recipes").mkdir(exist_ok=True)


def _named(path: Path) -> Path:
    """Give a picture and its caption a name that is a caption too."""
    path.with_suffix(".txt").rename(path.with_name(f"word {path.stem}.txt"))
    return path.rename(path.with_name(f"word {path.name}"))


def _mask(picture: Path, target: Path) -> None:
    from PIL import Image

    with Image.open(picture) as opened:
        mask = Image.new("L", opened.size, 255)
    mask.paste(0, (0, 0, mask.width // 2, mask.height))
    mask.save(target)
    target.with_suffix(".txt").write_text("a mask\n")


def draw(number: int, root: Path) -> dict[str, Any] | None:
    """A recipe that its own rules accept, or None; keys that break a rule are left out and it is tried again."""
    chance = random.Random(number)
    data = _section(Recipe, "", chance)
    data["name"] = f"r{number}"
    if data["base"]["model"] != "bases/sdxl":
        data["base"].pop("refiner", None)
    if data["base"]["model"] != "bases/sd1" and "sample" in data:
        data["sample"].pop("adapters", None)
    for _ in range(12):
        try:
            Recipe.model_validate(data, context={"project": root})
        except ValidationError as error:
            paths = [path for path, _ in explain(error) if ".".join(map(str, path)) not in NEEDED]
            if not any(_remove(data, path) for path in paths):
                return None
        else:
            del data["name"]
            return data
    return None


def _remove(data: Any, path: tuple[Any, ...]) -> bool:
    """Take out what stands at a path, or the nearest thing around it that can go."""
    while path:
        inner: Any = data
        for part in path[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None if isinstance(part, str) else inner[part]
            if inner is None:
                break
        if isinstance(inner, dict) and path[-1] in inner and path not in (("base",), ("datasets",), ("name",)):
            del inner[path[-1]]
            return True
        path = path[:-1]
    return False


def _section(model: type[BaseModel], at: str, chance: Chance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        path = f"{at}.{key}".lstrip(".")
        needed = field.is_required() or (
            path in ("method", "train", "sample", "images", "train.steps", "images.buckets")
        )
        needed = needed or path in ("images.resolution", "images.buckets.step", "sample.steps", "method.prior.steps")
        needed = needed or path in ("method.prior.pictures", "train.batch")
        if key in ("kind", "from"):
            found[key] = field.default
        elif key not in NEVER and (needed or chance.random() < OFTEN):
            value = OWN[path](chance) if path in OWN else _value(field.annotation, list(field.metadata), path, chance)
            if value is not PydanticUndefined:
                found[key] = value
    return found


def _value(annotation: Any, metadata: list[Any], path: str, chance: Chance) -> Any:
    if path in OWN:
        return OWN[path](chance)
    origin = get_origin(annotation)
    if origin is Annotated:
        extra = [inner for each in annotation.__metadata__ for inner in getattr(each, "metadata", [each])]
        return _value(get_args(annotation)[0], [*metadata, *extra], path, chance)
    if origin in (UnionType, Union):
        options = [each for each in get_args(annotation) if each is not type(None)]
        return _value(chance.choice(options), metadata, path, chance)
    if origin is Literal:
        return chance.choice(get_args(annotation))
    if origin is tuple:
        inner = get_args(annotation)[0]
        return [_value(inner, [], path, chance) for _ in range(chance.randint(1, 2))]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _section(annotation, path, chance)
    if annotation is bool:
        return chance.random() < 0.5
    if annotation in (int, float):
        return _number(annotation, metadata, chance)
    if annotation is str:
        return chance.choice(WORDS)
    return PydanticUndefined


def _number(kind: Any, metadata: list[Any], chance: Chance) -> Any:
    low: float = -100
    high: float = 100
    step = 1
    for bound in metadata:
        if isinstance(bound, FieldInfo):
            return _number(kind, bound.metadata, chance)
        low = float(bound.ge) if isinstance(bound, Ge) else low  # type: ignore[arg-type]
        low = float(bound.gt) + 1e-3 if isinstance(bound, Gt) else low  # type: ignore[arg-type]
        high = float(bound.le) if isinstance(bound, Le) else high  # type: ignore[arg-type]
        high = float(bound.lt) - (1 if kind is int else 1e-3) if isinstance(bound, Lt) else high  # type: ignore[arg-type]
        step = int(bound.multiple_of) if isinstance(bound, MultipleOf) else step  # type: ignore[call-overload]
    if chance.random() < EXTREME:
        return kind(chance.choice([low, high]))
    if low > 0 and high / low > 1000:
        number = min(high, max(low, 10 ** chance.uniform(-4, 1)))
    else:
        number = chance.uniform(low, min(high, low + 10))
    return round(number) // step * step if kind is int else round(number, 6)
