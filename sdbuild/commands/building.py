"""Commands around building: a new project, checks, the plan, single steps."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sdbuild.build.project import Project, find_project
from sdbuild.console import Console
from sdbuild.errors import InputError


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    init = commands.add_parser("init", help="a new project that builds at once")
    init.add_argument("folder", nargs="?", default=".", type=Path)
    init.set_defaults(run=_init)

    check = commands.add_parser("check", help="validate recipes and data, all errors at once")
    check.add_argument("recipes", nargs="*", metavar="RECIPE")
    check.set_defaults(run=_check)

    plan = commands.add_parser("plan", help="what doit would do, and why; touches nothing")
    plan.add_argument("recipes", nargs="*", metavar="RECIPE")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(run=_plan)

    schema = commands.add_parser("schema", help="JSON schema of a recipe, for editors")
    schema.set_defaults(run=_schema)

    step = commands.add_parser("step", help="run one step as it stands in recipe.json; what DVC calls")
    step.add_argument("step", metavar="STEP")
    step.set_defaults(run=_step)

    join = commands.add_parser("join", help="take part in a training that another machine builds")
    join.add_argument("step", metavar="STEP")
    join.set_defaults(run=_join)

    worker = commands.add_parser("worker")  # no help: it is for the build alone
    worker.set_defaults(run=_worker)
    member = commands.add_parser("member")  # for steps in several processes alone
    member.set_defaults(run=_member)


def _init(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.scaffold import create

    create(options.folder, console)
    return 0


def _check(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.check import check_project

    project = find_project()
    for line in check_project(project, options.recipes, console):
        console.say(line)
    return 0


def _plan(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.forecast import forecast

    found = forecast(find_project(), options.recipes)
    steps, told = found.steps, [str(problem) for problem in found.problems]
    if options.json:
        also = {name: words for name, words in (("problems", told), ("notes", found.notes)) if words}
        console.json({"steps": steps, **also})
    else:
        console.table(("step", "does", "items", "because"), (_plan_row(step, told) for step in steps))
        for word in dict.fromkeys([*(word for step in steps for word in step.get("lacking", ())), *found.notes]):
            console.warn(word)
        for path in dict.fromkeys(path for step in steps for path in step.get("outdated", ())):
            older = f"{path} holds an older version than {path}.dvc names"
            console.warn(f"{older}; doit checks out the named one when a step needs it")
    if told:
        console.error("\n".join(told))
    return InputError.exit_code if told else 0


def _plan_row(step: Mapping[str, Any], told: Collection[str]) -> tuple[str, str, str, str]:
    items = step["items"]
    counts = f"{items['todo']} of {items['total']}" if items["total"] is not None else ""
    reasons = ["the errors below" if reason in told else reason for reason in step["reasons"]]
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    action = "-" if step["action"] == "none" else "perhaps" if step.get("perhaps") else step["action"]
    if step.get("blocked"):
        action = "cannot run"
    if step["action"] == "run" and items["total"] and not items["todo"]:
        shown += f" (all {items['total']} will be stored by then)"
    if asks := step.get("asks"):
        shown = "; ".join([*map(_asks, asks), *([shown] if shown else [])])
    return step["name"], action, counts if step["action"] == "run" else "", shown


def _asks(ask: Mapping[str, Any]) -> str:
    """What a model would be asked, in words."""
    words = f"asks {ask['model']} about {ask['pictures']} {'picture' if ask['pictures'] == 1 else 'pictures'}"
    if ask["input_tokens"] is not None:
        words += f" (about {ask['input_tokens']:,} tokens, up to {ask['output_tokens']:,} answered"
        words += f", up to ${ask['cost']:.2g})" if ask["cost"] is not None else ")"
    return words


def _schema(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.recipe.schema import json_schema

    console.json(json_schema(), indent=2)
    return 0


def _step(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.worker import logged, run_alone

    project, name = find_project(), options.step
    screen = Console(os.fdopen(os.dup(1), "w", buffering=1))

    def emit(event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            screen.step_progress(name, event["done"], event["total"], event["unit"], event["figures"])
        else:
            screen.warn(f"{name}: {event['message']}")

    started = time.monotonic()
    screen.step_started(name, ())
    try:
        with logged(project.log(name)):
            items = run_alone(project, name, emit)
    finally:
        screen.step_failed(name)
    screen.step_done(name, items.total, items.computed, time.monotonic() - started)
    return 0


def _join(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.worker import take_part

    take_part(find_project(), options.step)
    console.say(f"{options.step}: done; its result is where it is built")
    return 0


def _worker(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.worker import serve

    return serve(Project(Path.cwd()))


def _member(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.worker import be_member

    return be_member(Project(Path.cwd()))
