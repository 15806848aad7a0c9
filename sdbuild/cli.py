"""The `sdbuild` command: its parser and exit codes. Building itself is `doit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sdbuild import (
    __version__,
    early,  # noqa: F401  before what takes long to load
)
from sdbuild.commands import building, captions, compare, history, probe, remote, upkeep
from sdbuild.console import Console
from sdbuild.errors import InputError, SdbuildError, UsageError, of_system
from sdbuild.storage import terminal_text
from sdbuild.storage.phrases import did_you_mean

SUBJECTS = (building, probe, captions, compare, history, upkeep, remote)
"""To add commands: a module in `sdbuild.commands` with `add_to`, and its name here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or that of the error (`sdbuild.errors`)."""
    terminal_text.guard()
    parser = _parser()
    console = Console()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if unknown := _unknown(parser, arguments):
        console.error(unknown)
        return UsageError.exit_code
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        return UsageError.exit_code if end.code else 0
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
        console.hush()
        return 0
    except RecursionError:
        if options.debug:
            raise
        console.error("a file is nested too deeply to be read; restore it with git (--debug shows where)")
        return InputError.exit_code
    except OSError as error:
        if options.debug:
            raise
        told = of_system(error)
        console.error(str(told))
        return told.exit_code


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


def _unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """What to say of a command that there is not; those that only builds call are not told."""
    name = next((word for word in arguments if not word.startswith("-")), None)
    [commands] = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if name is None or name in commands.choices:
        return None
    listed = [choice.dest for choice in commands._choices_actions]
    hint = did_you_mean(name, listed) or f": there is {', '.join(listed)}"
    return f"{parser.format_usage()}sdbuild: error: no command {name}{hint}; `sdbuild --help` lists them"
