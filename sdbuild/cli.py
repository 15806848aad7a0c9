"""The `sdbuild` command: its parser and exit codes. Building itself is `doit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sdbuild import __version__
from sdbuild.commands import building, captions, compare, history, probe, remote, upkeep
from sdbuild.console import Console
from sdbuild.errors import SdbuildError, UsageError

SUBJECTS = (building, probe, captions, compare, history, upkeep, remote)
"""To add commands: a module in `sdbuild.commands` with `add_to`, and its name here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or that of the error (`sdbuild.errors`)."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        return UsageError.exit_code if end.code else 0
    console = Console()
    try:
        return int(options.run(options, console))
    except SdbuildError as error:
        if options.debug:
            raise
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.error("stopped")
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdbuild",
        description="make for Stable Diffusion adapters: recipes say what is wanted, `doit` builds it.",
    )
    parser.add_argument("--version", action="version", version=f"sdbuild {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for subject in SUBJECTS:
        subject.add_to(commands)
    return parser
