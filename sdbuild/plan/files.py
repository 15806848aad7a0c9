"""The plan as files: `dvc.yaml` for the project and `recipe.json` for each recipe; pure text, written elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sdbuild.plan.model import Base, Out, Step

HEADER = "# Compiled by sdbuild from recipes/; edits are replaced by the next build.\n"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./:-]*[A-Za-z0-9_./-])*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def render_dvc_yaml(steps: Iterable[Step]) -> str:
    """Text of `dvc.yaml`: a stage a step, in plan order.

    Written by hand rather than by a YAML library: a thousand stages are rendered at every build, in milliseconds.
    """
    lines = [line for step in steps for line in _stage(step)]
    return "\n".join((HEADER + "stages:", *lines, "")) if lines else f"{HEADER}stages: {{}}\n"


def render_recipe_json(
    name: str,
    resolved: Mapping[str, Any],
    base: Base,
    steps: Iterable[Step],
    reads: Mapping[str, Mapping[str, str]],
) -> str:
    """Text of `recipe.json`: the resolved recipe and base, and the parameters of each of its steps.

    `reads` holds the digests of what each step really reads, by step name; see `sdbuild.data.views`.
    """
    parameters = {step.kind: step.parameters(reads.get(step.name, {})) for step in steps}
    content = {"name": name, "recipe": resolved, "base": asdict(base), "steps": parameters}
    return dump_recipe_json(content)


def dump_recipe_json(content: Mapping[str, Any]) -> str:
    """The text of `recipe.json`."""
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def scalar(text: str) -> str:
    """A YAML scalar for a string: plain where that is safe, else double-quoted (JSON strings are YAML)."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _stage(step: Step) -> Iterator[str]:
    yield f"  {step.stage}:"
    yield f"    cmd: {scalar(step.command)}"
    yield "    deps:"
    yield from (f"    - {scalar(dep.path)}" for dep in sorted(step.deps, key=lambda dep: dep.path))
    yield "    params:"
    yield f"    - {scalar(step.params_file)}:"
    yield f"      - {step.params_key}"
    for title, kind in (("outs", "out"), ("metrics", "metric"), ("plots", "plot")):
        found = sorted((out for out in step.outs if out.kind == kind), key=lambda out: out.path)
        if found:
            yield f"    {title}:"
            for out in found:
                yield from _out(out)


def _out(out: Out) -> Iterator[str]:
    if out.kind == "plot":
        yield f"    - {scalar(out.path)}:"
        yield "        x: step"
        yield "        y: loss"
    else:
        yield f"    - {scalar(out.path)}"
