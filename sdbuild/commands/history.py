"""Commands around history: states of recipes, differences between them, what something was made from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdbuild.build.project import find_project
from sdbuild.console import Console
from sdbuild.errors import UsageError


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    log = commands.add_parser("log", help="each committed state of a recipe: what changed, and its metrics")
    log.add_argument("recipe", nargs="?", metavar="RECIPE")
    log.add_argument("-n", "--number", type=_count, help="of states at most")
    log.add_argument("--json", action="store_true", help="for programs")
    log.set_defaults(run=_log)

    diff = commands.add_parser("diff", help="pictures, captions, settings, metrics and grids of two states")
    diff.add_argument("old", nargs="?", default="HEAD", metavar="A", help="a revision; HEAD if left out")
    diff.add_argument("new", nargs="?", metavar="B", help="another; what is built here if left out")
    diff.add_argument("-r", "--recipe", action="append", default=[], metavar="RECIPE", help="only this one")
    diff.add_argument("--json", action="store_true", help="for programs")
    diff.set_defaults(run=_diff)

    why = commands.add_parser("why", help="why a step is stale, or what a step or an adapter file was built from")
    why.add_argument("what", metavar="STEP|FILE", help="e.g. cat:train, or cat.safetensors from anywhere")
    why.add_argument("--project", type=Path, metavar="DIR", help="whose history is searched; the one around, if any")
    why.set_defaults(run=_why)


def _log(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.report.log import COLUMNS, log

    found = log(find_project(), options.recipe, options.number, None if options.json else console)
    if options.json:
        console.json({"states": [each.to_json() for each in found]})
    elif found:
        console.table(COLUMNS, (each.row() for each in found))
    else:
        console.say("nothing was built yet; `doit` builds, and a commit keeps the state")
    return 0


def _diff(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.report.diff import diff

    found = diff(find_project(), options.old, options.new, options.recipe, None if options.json else console)
    if options.json:
        console.json(found.to_json())
        return 0
    for line in found.lines():
        console.styled(line)
    return 0


def _why(options: argparse.Namespace, console: Console) -> int:
    if options.what.endswith(".safetensors") or Path(options.what).exists():
        return _why_file(options, console)
    from sdbuild.build.forecast import explain

    for line in explain(find_project(options.project), options.what):
        console.say(line)
    return 0


def _why_file(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.report.provenance import provenance

    file = Path(options.what)
    if not file.is_file():
        raise UsageError(f"{file}: {'is a folder; name a file in it' if file.is_dir() else 'there is no such file'}")
    try:
        project = find_project(options.project)
    except UsageError:
        if options.project is not None:
            raise
        project = None
    for line in provenance(file, project, console):
        console.say(line)
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
