"""Checks a recipe against the networks of its base, which are made on the device `meta`.

Nothing is loaded but configurations, vocabularies and the adapters that a grid mixes in. Importing it is light.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.errors import DataError, InputError, Problem, RecipeError
from sdbuild.recipe.methods import method_of

if TYPE_CHECKING:
    from torch import nn

    from sdbuild.families.contract import Family
    from sdbuild.steps.prediction import Outline

Steps = Mapping[str, Mapping[str, Any]]
"""Specs of a recipe's steps, by kind."""


def needs_networks(steps: Steps) -> bool:
    """Whether checking a recipe takes its base's networks.

    It names modules, words or adapter files, or has a method that not every base has room for.
    """
    method = steps["train"]["method"]
    named = any(
        isinstance(each.get("targets"), list | tuple)
        or each.get("parts")
        or each.get("layers")
        or each.get("orthogonal") == "both"
        for each in (method, method.get("lora") or {})
    )
    return bool(named or method["kind"] == "hypernetwork" or method_of(method).words or _files(steps))


def check(steps: Steps, base: Path, project: Path) -> None:
    """Refuse a recipe that could not be trained or drawn on its base.

    Raises:
        RecipeError: with everything that is wrong.
    """
    if not needs_networks(steps):
        return
    if found := [problem for problem, stops in find_problems(steps, base, project) if stops]:
        raise RecipeError(found)


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Check several recipes; returns problems by name."""
    answer: dict[str, Any] = {}
    for name, each in request["recipes"].items():
        try:
            rows = list(find_problems(each["steps"], Path(each["base"]), Path(request["project"])))
        except Exception as error:  # a library's, on a strange base; the other recipes are still checked
            traceback.print_exc()
            [reason, *_] = [*str(error).strip().splitlines(), ""]
            message = f"cannot be tried on its base ({type(error).__name__}: {reason}), so a build may fail"
            rows = [(Problem(field="base.model", message=message), False)]
        answer[name] = [{**asdict(problem), "stops": stops} for problem, stops in rows]
    return answer


def find_problems(steps: Steps, base: Path, project: Path) -> Iterator[tuple[Problem, bool]]:
    """Yield problems, and whether each is an error or only a warning."""
    from sdbuild.steps.model import untrained
    from sdbuild.steps.prediction import outline

    method = method_of(steps["train"]["method"])
    try:
        made = outline(steps["train"], base)
    except InputError as error:
        yield from ((_in_lora(problem, method.kind), True) for problem in error.problems)
    else:
        if "denoiser" in untrained(method, made.model.adapter):
            message = "name no module of the denoiser, so nothing of it is trained"
            yield _in_lora(Problem(field="method.targets", message=message), method.kind), False
        if steps["train"]["method"].get("layers") and "extract" in steps and not _extracts(made):
            message = (
                "method.layers names nothing that a LoRA can adapt; remove it, or name linear layers or convolutions"
            )
            yield Problem(field="method.extract", message=message), True
    for index, file in _files(steps).items():
        try:
            _try(base, project / file)
        except InputError as error:
            for problem in error.problems:
                field = f"sample.adapters[{index}].path"
                yield Problem(field=field, message=f"{file}: {problem.message}"), True


def _extracts(made: Outline) -> bool:
    """Whether any trained weight is of a layer that a LoRA can adapt."""
    from sdbuild.methods.extraction import adaptable

    denoiser, text = made.model.denoiser, made.model.text
    networks: dict[Any, nn.Module] = {denoiser.component: denoiser.module, **(text.modules if text else {})}
    known = {f"{component}.{name}" for component, network in networks.items() for name in adaptable(network)}
    return any(name in known for name, _ in made.trained)


def _in_lora(problem: Problem, kind: str) -> Problem:
    """Where a method holds a LoRA, its modules are named there."""
    field = problem.field or ""
    if kind != "pivotal" or not field.startswith(("method.targets", "method.parts", "method.text_encoder")):
        return problem
    return replace(problem, field=field.replace("method.", "method.lora.", 1))


def _files(steps: Steps) -> dict[int, str]:
    """Files of other adapters that a grid mixes in, by their places."""
    others = (steps.get("samples") or {}).get("adapters") or ()
    return {index: other["path"] for index, other in enumerate(others) if other["path"] is not None}


def _try(base: Path, file: Path) -> None:
    """Add an adapter from elsewhere to networks without weights.

    Raises:
        DataError: it does not go with them.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sdbuild import families
    from sdbuild.methods import elsewhere
    from sdbuild.methods.hypernetwork.spec import Hypernetwork
    from sdbuild.steps.model import method_in

    if not file.is_file():
        return  # DVC brings it
    family = families.load(base, weights=False)
    try:
        method = method_in(file)
        state = load_file(file)
    except (DataError, SafetensorError, OSError, ValueError):
        return  # told by the look at its header
    if method is not None and method.words:
        raise DataError("has new words, which are not in this file; name the recipe that makes it")
    with torch.device("meta"):
        denoiser, text = family.load_denoiser(device="meta"), family.load_text(device="meta")
    modules: dict[Any, nn.Module] = {denoiser.component: denoiser.module, **text.modules}
    if isinstance(method, Hypernetwork):
        return
    try:
        parts = elsewhere.parts_of(state, modules, family.key_map)
        if parts is not None:
            elsewhere.add(parts, modules)
    except ValueError as error:
        raise DataError(
            f"{error}; name a LoRA, LoHa, LoKr or the like that was made for a base of the same family"
        ) from error
    if parts is None and (strange := sorted(_unknown_layers(state, modules, family))):
        message = f"has {len(strange)} layers that this base has not, such as {strange[0]}"
        raise DataError(f"{message}; name a LoRA, LoHa, LoKr or the like that was made for a base of the same family")


def _unknown_layers(state: Mapping[str, Any], modules: Mapping[Any, nn.Module], family: Family) -> Iterator[str]:
    """Layers that a file adapts, in diffusers' names or kohya's, and that networks do not have."""
    from sdbuild.methods.elsewhere import TEXT_ROOT

    for key in state:
        component, _, path = key.partition(".")
        if component in modules:
            path = path.partition(".lora")[0].removesuffix(".processor")
        else:
            try:
                component, path = family.key_map.path(component)
            except ValueError:
                if component.startswith("lora_"):
                    yield key.partition(".")[0]
                continue
        places = (path, path.removeprefix(TEXT_ROOT), f"{TEXT_ROOT}{path}")
        if not any(_has(modules[component], place) for place in places if component in modules):
            yield f"{component}.{path}"


def _has(network: nn.Module, path: str) -> bool:
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True
