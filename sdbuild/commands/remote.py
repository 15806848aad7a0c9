"""Commands around the team's remote: push and pull."""

from __future__ import annotations

import argparse
from typing import Any

from sdbuild.build.project import find_project
from sdbuild.console import Console


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    push = commands.add_parser("push", help="data, outs and all runs to the remote")
    push.set_defaults(run=_push)

    pull = commands.add_parser("pull", help="data, outs and all runs from the remote")
    pull.set_defaults(run=_pull)


def _push(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.share import push

    push(find_project(), console)
    return 0


def _pull(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.share import pull

    pull(find_project(), console)
    return 0
