"""The command around memory, disk and time: will it fit?"""

from __future__ import annotations

import argparse
import os
from typing import Any

from sdbuild.build.project import find_project
from sdbuild.console import Console


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    probe = commands.add_parser("probe", help="memory, disk and time that a recipe takes; a few steps are measured")
    probe.add_argument("recipe", metavar="RECIPE", help="a recipe, or a variant of one")
    probe.add_argument("--predict", action="store_true", help="only predict; no step is taken, no weights are needed")
    probe.add_argument("--device", choices=("cpu", "cuda"), help="predict for this kind of device, there or not")
    probe.add_argument("--json", action="store_true", help="for programs; bytes and seconds")
    probe.set_defaults(run=_probe)

    prober = commands.add_parser("prober")  # no help: it is for `probe` alone
    prober.set_defaults(run=_prober)


def _probe(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.probing import probe
    from sdbuild.report import memory

    def say(text: str) -> None:
        if not options.json:
            console.say(text)

    found = probe(find_project(), options.recipe, say, predict=options.predict, device=options.device)
    if options.json:
        console.json(found)
        return 0
    for line in memory.words(found):
        console.say(line)
    console.say("")
    console.table(*memory.memory_table(found))
    console.say("")
    for pieces in memory.chart(found, coloured=console.is_terminal and "NO_COLOR" not in os.environ):
        console.styled(pieces)
    console.say("")
    console.table(*memory.disk_table(found))
    console.say("")
    for line in (*memory.measured(found), *memory.problems(found)):
        console.say(line)
    return 0


def _prober(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.build.probing import answer

    return answer()
