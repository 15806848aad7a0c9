"""Names of recipes: the file's stem, which becomes a folder, a doit task and a part of DVC's stage names."""

from __future__ import annotations

import re

STEPS = ("images", "captions", "prior", "latents", "text", "train", "samples")
RESERVED = frozenset(
    {
        *("auto", "clean", "dumpdb", "forget", "help", "ignore", "info", "list", "reset-dep"),
        *("run", "strace", "tabcompletion", "all"),
    }
)
"""Words that `doit NAME` takes for a command of its own, or might."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def wrong_name(name: str) -> str | None:
    """Say why a recipe cannot have this name, and what to call it; None if it can."""
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-recipe"
        return f"a recipe's name has small letters, digits and dashes only; rename the file to {better}.yaml"
    if name in RESERVED:
        return f"{name!r} is a command of doit; rename the file, for instance to my-{name}.yaml"
    for step in STEPS:
        if name == step or name.endswith(f"-{step}"):
            better = name.removesuffix(step).strip("-") or "my-recipe"
            return (
                f"a recipe's name cannot end in the step name {step!r}; rename the file, for instance to {better}.yaml"
            )
    return None
