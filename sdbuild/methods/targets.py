"""Which modules of a network are adapted: presets and patterns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from sdbuild.errors import Problem, RecipeError
from sdbuild.families.contract import Component
from sdbuild.methods.spec import UNREAD, is_unread

ATTENTION = frozenset({"attn", "attn1", "attn2", "self_attn"})
"""Names of attention in diffusers and transformers."""
BLOCKS = frozenset({"attentions", "transformer_blocks"})
"""Names of what holds transformer blocks, in UNets and in transformers."""
TEXT_MLP = frozenset({"fc1", "fc2"})
KEYS_AND_VALUES = frozenset({"to_k", "to_v", "add_k_proj", "add_v_proj", "k_proj", "v_proj"})
SECOND = ("net.2", "fc2")
"""How the paths of second layers of feed-forward networks end."""


def is_attention(path: str, module: nn.Module) -> bool:
    """Queries, keys, values and outputs of attention."""
    return isinstance(module, nn.Linear) and not ATTENTION.isdisjoint(path.split("."))


def is_transformer(path: str, module: nn.Module) -> bool:
    """All that kohya's scripts adapt: linear layers and 1×1 convolutions of transformer blocks, in and out included."""
    if not (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))):
        return False
    parts = path.split(".")
    if not BLOCKS.isdisjoint(parts):
        return True
    return is_attention(path, module) or parts[-1] in TEXT_MLP


def is_linear(path: str, module: nn.Module) -> bool:
    """Every linear layer."""
    return isinstance(module, nn.Linear)


def is_second(path: str) -> bool:
    """The second layer of a feed-forward network."""
    return path.endswith(SECOND)


def is_scaled(path: str, module: nn.Module) -> bool:
    """What (IA)³ scales: keys, values, and inside of feed-forward networks (Liu et al. 2022, section 3.3)."""
    return isinstance(module, nn.Linear) and (path.rpartition(".")[2] in KEYS_AND_VALUES or is_second(path))


PRESETS: Mapping[str, Callable[[str, nn.Module], bool]] = {
    "default": is_transformer,
    "attention": is_attention,
    "all-linear": is_linear,
    "ia3": is_scaled,
}
"""By the recipe's `method.targets`."""


UNREAD_TOLD = (
    f"{UNREAD} takes no adapter: A1111, InvokeAI, kohya's scripts and diffusers read none for it; remove it, or train "
    "it with full or partial"
)


def all_layers(modules: Mapping[Component, nn.Module]) -> dict[Component, dict[str, nn.Module]]:
    """Linear layers and convolutions of each network, in its order, by their paths."""
    return {component: dict(_adaptable(network)) for component, network in modules.items()}


def select(modules: Mapping[Component, nn.Module], targets: str | Sequence[str]) -> dict[Component, list[str]]:
    """Return the paths of the modules to adapt, in each network's order.

    A pattern is a path or the end of one, with ``*`` for any letters: ``to_q``, ``up_blocks.*.to_k``. Text projections
    are left out: see `spec.UNREAD`.

    Raises:
        RecipeError: a pattern, or a preset, matches no linear layer and no convolution.
    """
    adaptable = {
        component: {path: layer for path, layer in layers.items() if path != UNREAD}
        for component, layers in all_layers(modules).items()
    }
    if isinstance(targets, str):
        matches = PRESETS[targets]
        chosen = {
            component: [path for path, module in paths.items() if matches(path, module)]
            for component, paths in adaptable.items()
        }
        if not any(chosen.values()):
            message = f"{targets!r} matches no module of this base; name modules as patterns"
            raise RecipeError([Problem(field="method.targets", message=message)])
        return chosen
    known = [path for paths in adaptable.values() for path in paths]
    problems = [
        Problem(field="method.targets", message=UNREAD_TOLD if is_unread(pattern) else _unmatched(pattern, known))
        for pattern in targets
        if not any(matches_pattern(path, pattern) for path in known)
    ]
    if problems:
        raise RecipeError(problems)
    return {
        component: [path for path in paths if any(matches_pattern(path, pattern) for pattern in targets)]
        for component, paths in adaptable.items()
    }


def select_parameters(modules: Mapping[Component, nn.Module], patterns: Sequence[str]) -> dict[Component, set[str]]:
    """Return the parameters of the modules that patterns name, whatever these are, and of all inside them.

    Raises:
        RecipeError: a pattern matches nothing that has parameters.
    """
    owners = {
        component: {name: _ancestors(name) for name, _ in network.named_parameters()}
        for component, network in modules.items()
    }
    known = list({path: None for names in owners.values() for paths in names.values() for path in paths})
    problems = [
        Problem(field="method.layers", message=_unmatched(pattern, known, "module with weights"))
        for pattern in patterns
        if not any(matches_pattern(path, pattern) for path in known)
    ]
    if problems:
        raise RecipeError(problems)
    return {
        component: {
            name
            for name, paths in names.items()
            if any(matches_pattern(path, pattern) for path in paths for pattern in patterns)
        }
        for component, names in owners.items()
    }


def _ancestors(parameter: str) -> list[str]:
    """Paths of the module that has a parameter, and of those around it."""
    parts = parameter.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def innermost(module: nn.Module) -> nn.Module:
    """The layer of the base below what adapters have wrapped around it."""
    found: Any = module
    while hasattr(found, "base_layer"):
        found = found.base_layer
    assert isinstance(found, nn.Module)
    return found


def _adaptable(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and convolutions of a base, in order; those that are adapted already count once."""
    layer = innermost(module)
    if isinstance(layer, nn.Linear | nn.Conv2d):
        yield path, layer
    elif layer is module:
        for name, child in module.named_children():
            yield from _adaptable(child, f"{path}.{name}" if path else name)


Value = TypeVar("Value")


def by_pattern(
    chosen: Mapping[Component, Sequence[str]], values: Sequence[tuple[str, Value]], field: str
) -> dict[tuple[Component, str], Value]:
    """Return the value of each module that a pattern fits; of several patterns the last counts.

    Patterns see the component too: ``text_encoder*`` fits all text encoders, ``unet.*attn2.to_k`` some of the UNet.

    Raises:
        RecipeError: a pattern fits none of the chosen modules; `field` is the recipe's.
    """
    names = [(component, path) for component, paths in chosen.items() for path in paths]
    found: dict[tuple[Component, str], Value] = {}
    problems = []
    for pattern, value in values:
        fits = [name for name in names if matches_pattern(".".join(name), pattern)]
        found |= dict.fromkeys(fits, value)
        if not fits:
            message = _unmatched(pattern, [".".join(name) for name in names], "adapted layer")
            problems.append(Problem(field=field, message=message))
    if problems:
        raise RecipeError(problems)
    return found


def matches_pattern(path: str, pattern: str) -> bool:
    """Tell whether a pattern is the module's path, or its end."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _unmatched(pattern: str, known: Sequence[str], what: str = "linear layer or convolution") -> str:
    """Name the nearest that there are: ends of paths of the pattern's own length."""
    length = pattern.count(".") + 1
    ends = {".".join(path.split(".")[-length:]) for path in known} | {path.split(".")[-1] for path in known}
    near = difflib.get_close_matches(pattern, sorted(ends), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(ends)[:6])}"
    return f"{pattern!r} matches no {what} of this base ({hint})"
