"""Commands that keep a project in order: freeing space, merging what builds write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdbuild.build.project import find_project
from sdbuild.console import Console
from sdbuild.errors import UsageError


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    gc = commands.add_parser("gc", help="what of the cache no kept state needs; deletes it if told to")
    gc.add_argument("--delete", action="store_true", help="delete it; without, it is only told")
    gc.add_argument(
        "--keep", type=int, default=10, metavar="N", help="last states of each recipe to keep on every branch (10)"
    )
    gc.add_argument("--items", action="store_true", help="items too that no kept state was made of")
    gc.add_argument("--shared-cache", action="store_true", help="even if the cache lies outside the project")
    gc.set_defaults(run=_gc)

    merge = commands.add_parser("merge-file")  # no help: git calls it
    for name in ("base", "ours", "theirs"):
        merge.add_argument(name, type=Path)
    merge.add_argument("name")
    merge.set_defaults(run=_merge_file)


def _gc(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.space import collect_garbage

    if options.keep < 0:
        raise UsageError(f"--keep {options.keep}: a number of states cannot be negative")
    collect_garbage(
        find_project(),
        console,
        states=options.keep,
        delete=options.delete,
        items=options.items,
        shared=options.shared_cache,
    )
    return 0


def _merge_file(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.merge import merge_file

    return 0 if merge_file(options.base, options.ours, options.theirs, options.name) else 1
