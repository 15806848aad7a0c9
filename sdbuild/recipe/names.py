"""Names of recipes: the file's stem, which becomes a folder, a doit task and a part of DVC's stage names."""

from __future__ import annotations

import re

STEPS = ("images", "captions", "prior", "latents", "text", "train", "extract", "samples")
RESERVED = frozenset(
    {
        *("auto", "clean", "dumpdb", "forget", "help", "ignore", "info", "list", "reset-dep"),
        *("run", "strace", "tabcompletion", "all"),
    }
)
"""Words that `doit NAME` takes for a command of its own, or might."""
LONGEST = 180
"""Letters in the name of a recipe or variant, which is also a file's."""
VARIANT = "@"
"""Stands between a recipe's name and what a variant of its matrix has: `cat@rank-4,learning_rate-0.001`."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def group_of(name: str) -> str:
    """Name of the recipe's file, which the variants of a matrix share."""
    return name.partition(VARIANT)[0]


def dvc_name(name: str) -> str:
    """A recipe's or variant's name in letters that DVC takes for stages and artifacts: `cat__rank-4`."""
    if VARIANT not in name:
        return name
    return re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(f"[{VARIANT},]", "__", name))


def wrong_name(name: str) -> str | None:
    """Say why a recipe cannot have this name, and what to call it; None if it can."""
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-recipe"
        return f"a recipe's name has small letters, digits and dashes only; rename the file to {better}.yaml"
    if len(name) > LONGEST:
        return f"a recipe's name has at most {LONGEST} letters, this one has {len(name)}; rename the file"
    if name in RESERVED:
        return f"{name!r} is a command of doit; rename the file, for instance to my-{name}.yaml"
    for step in STEPS:
        if name == step or name.endswith(f"-{step}"):
            better = name.removesuffix(step).strip("-") or "my-recipe"
            return (
                f"a recipe's name cannot end in the step name {step!r}; rename the file, for instance to {better}.yaml"
            )
    return None
