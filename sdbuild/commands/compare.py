"""The command around variants: which came out best."""

from __future__ import annotations

import argparse
from typing import Any

from sdbuild.build.project import find_project
from sdbuild.console import Console


def add_to(commands: Any) -> None:
    """Declare the command to the parser."""
    compare = commands.add_parser(
        "compare", help="variants of a matrix, or recipes, ranked; their grids in one picture"
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="all variants of a matrix by the recipe's name")
    compare.add_argument("--json", action="store_true", help="for programs")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.report.compare import compare

    found = compare(find_project(), options.recipes, console)
    if options.json:
        console.json(found.to_json())
        return 0
    console.table(*found.table())
    for line in found.notes():
        console.say(line)
    return 0
