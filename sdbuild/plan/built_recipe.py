"""The recipe that outs were built from: what `recipe.json` says, corrected by the parameters of recorded steps.

`recipe.json` is written for all recipes before a build, and one of them may be left unbuilt: then it says what was
asked for, and `dvc.lock` what the outs come from. This is the inverse of `compile`, for the keys that differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sdbuild.plan.compile import OPTIONAL
from sdbuild.recipe.captioners import asks_model, is_how
from sdbuild.recipe.methods import method_of

_EMPTY = frozenset({"subject", "prefix", "suffix"})
"""Settings of captioners that are an empty text where they are not set, and left out of specs then."""

Section = dict[str, Any]
Parameters = Mapping[str, Any]

_UNSAID = frozenset({"version", "reads", "name"})


def as_built(recipe: Mapping[str, Any], steps: Mapping[str, Parameters], recorded: Mapping[str, Parameters]) -> Section:
    """A resolved recipe with the settings that its recorded steps have.

    Args:
        recipe: as it was resolved last.
        steps: parameters of its steps, by kind.
        recorded: parameters under which steps were built, by kind.
    """
    found: Section = json.loads(json.dumps(recipe))
    for kind, correct in _CORRECT.items():
        built = recorded.get(kind)
        if built and _stated(built) != _stated(steps.get(kind, {})):
            correct(found, _stated(built))
    return found


def _stated(parameters: Parameters) -> Section:
    return {key: value for key, value in parameters.items() if key not in _UNSAID}


def _images(recipe: Section, built: Section) -> None:
    rows = built.pop("datasets", [])
    recipe["images"] = _laid(recipe.get("images"), built, {"crops"})
    present = recipe.get("datasets") or []
    unset = {key: OPTIONAL.get(key) for key in (present[0] if present else {})}
    datasets = []
    for number, row in enumerate(rows):
        before = present[number] if number < len(present) else unset
        minimum = (before.get("mask") or {}).get("minimum", 0)
        mask = {"mask": {**row["mask"], "minimum": minimum} if row.get("mask") else None}
        datasets.append(_laid(before, {**row, **(mask if "mask" in {**before, **row} else {})}, {"resolutions"}))
    recipe["datasets"] = datasets


def _captions(recipe: Section, built: Section) -> None:
    for row, dataset in _paired(recipe, built):
        caption = row.pop("caption", None)
        dataset.update(_laid(dataset, row, {"lines"}))
        if caption is not None:
            dataset["caption"] = _caption(dataset.get("caption") or {}, caption)


def _caption(present: Mapping[str, Any], built: Mapping[str, Any]) -> Section:
    if not asks_model(built):
        return dict(built)
    said = dict(built)
    if isinstance(said.get("replace"), list):
        said["replace"] = dict(said["replace"])
    if isinstance(said.get("extra"), str):
        said["extra"] = json.loads(said["extra"])
    if present.get("from") != built.get("from"):
        return said
    unset = {key: "" if key in _EMPTY else None for key in present if not is_how(present, key)}
    return {**present, **unset, **said}


def _latents(recipe: Section, built: Section) -> None:
    said = {key: value for key, value in built.items() if key not in ("datasets", "dtype")}
    recipe["images"] = _laid(recipe.get("images"), said, {"vae_tiling"})


def _text(recipe: Section, built: Section) -> None:
    _encoding(recipe, built)


def _train(recipe: Section, built: Section) -> None:
    for row, dataset in _paired(recipe, built):
        minimum = row.pop("mask_minimum", 0)
        dataset.update(_laid(dataset, row, {"tags", "weight"}))
        if dataset.get("mask"):
            dataset["mask"] = {**dataset["mask"], "minimum": minimum}
    recipe["train"] = _laid(recipe.get("train"), built.get("train", {}))
    method = method_of(built["method"]).model_dump(mode="json", by_alias=True)
    present = recipe.get("method") or {}
    apart = {key: present[key] for key in ("extract", "prior") if key in present and key in method}
    if isinstance(built["method"].get("prior"), Mapping) and isinstance(apart.get("prior"), Mapping):
        apart["prior"] = {**apart["prior"], **built["method"]["prior"]}
    elif "prior" in apart:
        apart["prior"] = built["method"].get("prior")
    recipe["method"] = {**method, **apart}
    if "clip_skip" in built:  # else the text step says it, or the method trains no text
        _encoding(recipe, built)


def _samples(recipe: Section, built: Section) -> None:
    elsewhere = ("method", "resolution", "clip_skip", "prediction", "zero_terminal_snr")
    said = {key: value for key, value in built.items() if key not in elsewhere}
    recipe["sample"] = _laid(recipe.get("sample"), said)


def _extract(recipe: Section, built: Section) -> None:
    if isinstance(recipe.get("method"), dict) and "rank" in built:
        recipe["method"]["extract"] = {**(recipe["method"].get("extract") or {}), "rank": built["rank"]}


def _encoding(recipe: Section, built: Section) -> None:
    if isinstance(recipe.get("base"), dict) and "clip_skip" in {**recipe["base"], **built}:
        recipe["base"]["clip_skip"] = built.get("clip_skip", OPTIONAL["clip_skip"])


_CORRECT: Mapping[str, Callable[[Section, Section], None]] = {
    "images": _images,
    "captions": _captions,
    "latents": _latents,
    "text": _text,
    "train": _train,
    "extract": _extract,
    "samples": _samples,
}


def _paired(recipe: Section, built: Section) -> list[tuple[Section, Section]]:
    rows = built.get("datasets") or []
    return [(dict(row), dataset) for row, dataset in zip(rows, recipe.get("datasets") or [], strict=False)]


def _laid(present: Mapping[str, Any] | None, built: Mapping[str, Any], optional: Collection[str] = OPTIONAL) -> Section:
    """A section with what was built laid over it; an `optional` setting that was not built with is as unset."""
    found: Section = {}
    for key, value in {**(present or {}), **built}.items():
        before = (present or {}).get(key)
        if key not in built:
            found[key] = OPTIONAL[key] if key in optional else value
        elif isinstance(value, Mapping) and isinstance(before, Mapping):
            found[key] = _laid(before, value, optional)
        else:
            found[key] = value
    return found
