"""The plan as files: `dvc.yaml` for the project and `recipe.json` for each recipe; pure text, written elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from sdbuild.plan.model import Base, Step
from sdbuild.recipe.names import dvc_name, group_of

HEADER = "# Compiled by sdbuild from recipes/; edits are replaced by the next build.\n"
_COLUMNS = {"loss": ["loss"], "validation": ["adapter", "base"]}
"""What is drawn of a plot's file; of several files together the first."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./:-]*[A-Za-z0-9_./-])*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def render_dvc_yaml(steps: Iterable[Step], kept: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Text of `dvc.yaml`: a stage a step, in plan order; losses and grids as plots; each adapter as a model.

    What is `kept`, the text of entries by section and name, stands behind them as it is.

    Written by hand rather than by a YAML library: a thousand stages are rendered at every build, in milliseconds.
    """
    steps = list(steps)
    parts = {
        "stages": [line for step in steps for line in _stage(step)],
        "plots": list(_plots(steps)),
        "artifacts": list(_artifacts(steps)),
    }
    for title, entries in (kept or {}).items():
        parts.setdefault(title, []).extend(entry.rstrip("\n") for entry in entries.values())
    if not parts["stages"]:
        return f"{HEADER}stages: {{}}\n"
    return HEADER + "".join("\n".join((f"{title}:", *lines, "")) for title, lines in parts.items() if lines)


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
    content = {"name": name, "recipe": resolved, "base": base.stated(), "steps": parameters}
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
    if step.deps:
        yield "    deps:"
        yield from (f"    - {scalar(dep.path)}" for dep in sorted(step.deps, key=lambda dep: dep.path))
    yield "    params:"
    yield f"    - {scalar(step.params_file)}:"
    yield f"      - {step.params_key}"
    for title, kinds in (("outs", ("out", "plot")), ("metrics", ("metric",))):
        found = sorted(out.path for out in step.outs if out.kind in kinds)
        if found:
            yield f"    {title}:"
            yield from (f"    - {scalar(path)}" for path in found)


def _plots(steps: Iterable[Step]) -> Iterator[str]:
    """Losses, those of a matrix's variants together, and grids; at a stage's outs a plot could only be of one file."""
    found: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        for out in step.outs:
            if out.kind == "plot":
                found.setdefault((PurePosixPath(out.path).stem, group_of(step.recipe)), []).append(out.path)
    for (kind, group), paths in found.items():
        columns = _COLUMNS[kind]
        if len(paths) == 1:
            yield f"  - {scalar(paths[0])}:"
            yield "      x: step"
            yield f"      y: {columns[0] if len(columns) == 1 else json.dumps(columns)}"
        else:
            yield f"  - {scalar(f'{kind} of {group}')}:"
            yield "      x: step"
            yield "      y:"
            yield from (f"        {scalar(path)}: {columns[0]}" for path in paths)
    yield from (f"  - {scalar(grid)}" for step in steps for grid in (step.grid, step.progress) if grid)


def _artifacts(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        if step.adapter:
            kind, base = step.spec["method"]["kind"], step.base.model
            yield f"  {scalar(dvc_name(step.recipe))}:"
            yield f"    path: {scalar(step.adapter)}"
            yield "    type: model"
            yield f"    desc: {scalar(f'{kind} adapter of {base}, recipe {step.recipe}')}"
            yield "    labels:"
            yield from (f"    - {scalar(label)}" for label in (kind, base, group_of(step.recipe)))
