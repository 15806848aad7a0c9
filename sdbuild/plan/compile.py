"""`plan(recipe)`: the steps that build a recipe, in the order in which they can run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sdbuild.methods.spec import ClassPictures
from sdbuild.plan.model import Base, Dep, Out, Step, StepKind, View
from sdbuild.recipe.captioners import asks_model, is_how, own_models
from sdbuild.recipe.methods import method_of

if TYPE_CHECKING:
    from sdbuild.methods.spec import Side
    from sdbuild.recipe.models import Recipe

VERSIONS: Mapping[StepKind, int] = {
    "images": 2,
    "captions": 1,
    "prior": 1,
    "latents": 1,
    "text": 1,
    "train": 3,
    "extract": 1,
    "samples": 2,
}
"""Raised by hand when the results of a step kind change for the same spec and inputs; see `version_of`."""


def version_of(kind: StepKind, spec: Mapping[str, Any]) -> int:
    """Version of a step's results: an earlier one where no later one changed what this spec gives.

    `train` 3 fills the last batches of epochs, has other weights of timesteps, and zeros for the empty caption of bases
    whose pipeline has them.
    """
    if kind == "train":
        train = spec["train"]
        alone, plain = train["batch"] * train["accumulate"] == 1, train["weighting"]["kind"] == "uniform"
        if alone and plain and not train["caption_dropout"]:
            return min(2, VERSIONS[kind])
    return VERSIONS[kind]


def plan(recipe: Recipe) -> list[Step]:
    """Compile a recipe to its steps; pure, the project is not looked at."""
    resolved = recipe.resolved()
    return plan_resolved(recipe.name, resolved, Base.of(resolved["base"]))


def plan_resolved(name: str, recipe: Mapping[str, Any], base: Base) -> list[Step]:
    """The same from a resolved recipe and base, as `recipe.json` holds them."""
    return list(_steps(name, recipe, base))


def trained_components(sides: Collection[Side], *, whole: bool = False) -> tuple[str, ...]:
    """Parts of the base that training reads, by what the method changes; see `families.description.Part`.

    Where it writes a `whole` checkpoint, all that goes into it.
    """
    return ("denoiser", "schedule", "vae", *(("text",) if whole or "text" in sides else ()))


OPTIONAL: Mapping[str, Any] = {
    "clip_skip": 1,
    "resolutions": None,
    "crops": 1,
    "lines": False,
    "tags": None,
    "weight": None,
    "rising_loss": 3.0,
    "embeddings": None,
    "vae_tiling": False,
    "offload": False,
    "adapters": [],
    "measure": False,
    "base_precision": None,
    "gradient_checkpointing": False,
    "compile": False,
    "processes": 1,
    "validate_every": None,
    "early_stop": None,
    "save_every": None,
    "save_most": None,
    "every": None,
}
"""Settings that specs have only where a recipe sets them, so that what was built before they existed stays fresh."""


def _set(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: section[key] for key in keys if section.get(key, OPTIONAL[key]) != OPTIONAL[key]}


def _as_set(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _as_set(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if key not in OPTIONAL or value != OPTIONAL[key]
    }


def _caption(caption: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a captioner captions depend on; keys that users choose go in values, for DVC passes over some keys."""
    if not asks_model(caption):
        return caption
    own = {key: value for key, value in caption.items() if not is_how(caption, key) and value not in (None, "")}
    if "replace" in own:
        own["replace"] = [[old, new] for old, new in own["replace"].items()]
    if "extra" in own:
        own["extra"] = json.dumps(own["extra"], sort_keys=True)
    return own


def _how(caption: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in caption.items() if asks_model(caption) and is_how(caption, key)}


def _where_masks_are(dataset: Mapping[str, Any]) -> dict[str, Any]:
    mask = dataset.get("mask")
    return {"mask": {key: value for key, value in mask.items() if key != "minimum"}} if mask else {}


def _mask_minimum(dataset: Mapping[str, Any]) -> dict[str, Any]:
    mask = dataset.get("mask")
    return {"mask_minimum": mask["minimum"]} if mask and mask["minimum"] else {}


def _source(other: Mapping[str, Any]) -> Dep:
    """What the grid reads of another adapter."""
    recipe = other["recipe"]
    return Dep(path=other["path"] if recipe is None else f"build/{recipe}/adapter")


def _learned(train: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler has to know of the training."""
    found: dict[str, Any] = {} if train["prediction"] == "base" else {"prediction": train["prediction"]}
    return found | ({"zero_terminal_snr": True} if train["noise"]["zero_terminal_snr"] else {})


def _steps(name: str, recipe: Mapping[str, Any], base: Base) -> Iterator[Step]:
    datasets, images, train = recipe["datasets"], recipe["images"], recipe["train"]
    method = method_of(recipe["method"])
    folder = f"build/{name}"
    folders = tuple(Dep(path=path, viewed=True) for path in dict.fromkeys(data["path"] for data in datasets))
    images_file, captions_file = f"{folder}/images.jsonl", f"{folder}/captions.jsonl"
    trains_text = "text" in method.sides

    def step(
        kind: StepKind, spec: Mapping[str, Any], deps: tuple[Dep, ...], views: tuple[View, ...] = (), **parts: Any
    ) -> Step:
        spec = {"version": version_of(kind, spec), **spec}
        read = base.deps if "base" in views else ()
        return Step(recipe=name, kind=kind, spec=spec, deps=(*deps, *read), views=views, base=base, **parts)

    yield step(
        "images",
        {
            "datasets": [
                {
                    "path": data["path"],
                    "holdout": data["holdout"],
                    **_set(data, "resolutions"),
                    **_where_masks_are(data),
                }
                for data in datasets
            ],
            **{key: images[key] for key in ("resolution", "buckets", "crop", "background", "on_error")},
            **_set(images, "crops"),
        },
        deps=folders,
        outs=(Out(path=images_file),),
        views=("pictures",),
    )
    captioners = [data["caption"] for data in datasets if asks_model(data["caption"])]
    models = own_models(recipe)
    yield step(
        "captions",
        {
            "datasets": [
                {
                    "path": data["path"],
                    "caption": _caption(data["caption"]),
                    "trigger": data["trigger"],
                    **_set(data, "lines"),
                }
                for data in datasets
            ],
            **({"background": images["background"]} if captioners else {}),
        },
        deps=(Dep(path=images_file, viewed=True), *folders, *(Dep(path=path, viewed=True) for path in models)),
        outs=(Out(path=captions_file),),
        views=("captions", "model") if models else ("captions",),
        how={"datasets": [_how(data["caption"]) for data in datasets]} if captioners else {},
    )
    encoding = _set(recipe["base"], "clip_skip")
    drawn: tuple[Dep, ...] = ()
    prior = method.preserved
    if isinstance(prior, ClassPictures):
        drawn = (Dep(path=f"{folder}/prior"),)
        own = prior.model_dump(mode="json", exclude={"source", "weight", "offload"})
        yield step(
            "prior",
            {**own, "resolution": images["resolution"], **encoding},
            deps=(),
            outs=(Out(path=f"{folder}/prior"),),
            views=("base",),
            components=("index", "denoiser", "schedule", "vae", "text"),
            how={"offload": True} if prior.offload else {},
        )
    yield step(
        "latents",
        {
            "datasets": [data["path"] for data in datasets],
            **{key: images[key] for key in ("flip", "background")},
            "dtype": "float32",
            **_set(images, "vae_tiling"),
        },
        deps=(Dep(path=images_file, viewed=True), *folders, *drawn),
        outs=(Out(path=f"{folder}/latents"),),
        views=("pixels", "base"),
        components=("vae",),
    )
    tags = [_set(data, "tags") for data in datasets]
    if not trains_text:
        yield step(
            "text",
            {
                "empty": train["caption_dropout"] > 0,
                **({"datasets": tags} if any(tags) else {}),
                **({} if prior is None else {"prior": prior.caption}),
                **encoding,
            },
            deps=(Dep(path=captions_file, viewed=True),),
            outs=(Out(path=f"{folder}/text"),),
            views=("texts", "base"),
            components=("text",),
        )
    text = () if trains_text else (Dep(path=f"{folder}/text"),)
    how = {"trackers": train["trackers"]} if train.get("trackers") else {}
    yield step(
        "train",
        {
            "name": name,
            "datasets": [
                {"repeats": data["repeats"], **_set(data, "weight", "tags"), **_mask_minimum(data)} for data in datasets
            ],
            "method": method.stated(),
            "train": _as_set({key: value for key, value in train.items() if key != "trackers"}),
            **(encoding if trains_text else {}),
        },
        deps=(Dep(path=captions_file, viewed=True), Dep(path=f"{folder}/latents"), *text),
        outs=(
            Out(path=f"{folder}/adapter"),
            Out(path=f"{folder}/metrics.json", kind="metric"),
            Out(path=f"{folder}/loss.csv", kind="plot"),
            *([Out(path=f"{folder}/validation.csv", kind="plot")] if train.get("validate_every") else ()),
            *([Out(path=f"{folder}/adapters")] if train.get("save_every") else ()),
        ),
        views=("records", "base"),
        components=trained_components(method.sides, whole=method.trains_base),
        how=how,
        final=True,
    )
    if method.extracted is not None:
        yield step(
            "extract",
            {
                "name": name,
                "sides": sorted(method.sides),
                "rank": method.extracted.rank,
                **({"revised": ["text_projection"]} if trains_text else {}),
            },
            deps=(Dep(path=f"{folder}/adapter"),),
            outs=(Out(path=f"{folder}/extracted"), Out(path=f"{folder}/extract.json", kind="metric")),
            views=("base",),
            components=("denoiser", *(("text",) if trains_text else ())),
            final=True,
        )
    if recipe["sample"] is not None:
        along = (Dep(path=f"{folder}/adapters"),) if recipe["sample"].get("every") else ()
        lora = (Dep(path=f"{folder}/extracted"),) if method.extracted is not None else ()
        refiner = ("refiner/unet",) if recipe["base"].get("refiner") else ()
        sample = {key: value for key, value in recipe["sample"].items() if key != "refine_from" or refiner}
        others = [_source(other) for other in sample.get("adapters", ())]
        measured = (Dep(path=captions_file, viewed=True), Dep(path=f"{folder}/latents")) if sample["measure"] else ()
        yield step(
            "samples",
            {
                "name": name,
                **_as_set(sample),
                "resolution": images["resolution"],
                "method": method.stated(),
                **encoding,
                **_learned(train),
            },
            deps=(Dep(path=f"{folder}/adapter"), *along, *lora, *dict.fromkeys(others), *measured),
            outs=(
                Out(path=f"{folder}/samples"),
                *((Out(path=f"{folder}/samples.metrics.json", kind="metric"),) if measured else ()),
            ),
            views=("base", *(("records",) if measured else ())),
            components=("index", "denoiser", "schedule", "vae", "text", *refiner),
            final=True,
        )
