"""Commands that keep a project in order: merging what builds write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdbuild.console import Console


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    merge = commands.add_parser("merge-file")  # no help: git calls it
    for name in ("base", "ours", "theirs"):
        merge.add_argument(name, type=Path)
    merge.add_argument("name")
    merge.set_defaults(run=_merge_file)


def _merge_file(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.merge import merge_file

    return 0 if merge_file(options.base, options.ours, options.theirs, options.name) else 1
