"""Builds that tell in which phase they are, and that are killed in a phase of one's choice.

Phases are told over a named pipe by the build itself, whose `dodo.py` calls `tell_phases`: `start`; then for each step
its kind, `<kind> under way` from its first progress on, `save <kind>` while DVC takes its outs, `lock <kind>` while
`dvc.lock` is written, `after <kind>`; and `restore` for one that is brought back.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdbuild.build.engine import Engine
from sdbuild.build.lockfile import LockFile
from sdbuild.build.oracle import Verdict
from sdbuild.build.workers import Workers
from tests import warm
from tests.build.test_kill import workers
from tests.conftest import BIN, DODO, Work, environment

REPOSITORY = Path(__file__).parents[2]
PIPE = ".sdbuild-phases"
TELLING = f"""{DODO}

from tests.build.killing import tell_phases

tell_phases(PROJECT.with_name(PROJECT.name + {PIPE!r}))
"""
"""A `dodo.py` whose builds tell their phases."""

Whom = Literal["all", "doit", "worker"]
VICTIMS: tuple[Whom, ...] = ("all", "doit", "worker")


def tell_phases(pipe: Path) -> None:
    """Have this process write its phases to a pipe that somebody reads, each with the system's clock."""
    warm.fork_workers()
    try:
        channel = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody does
        return
    current = "start"

    def tell(phase: str) -> None:
        nonlocal current
        current = phase
        os.write(channel, f"{time.monotonic()} {phase}\n".encode())

    run, write, decide = Workers.run, LockFile.write, Engine._without_running

    def told_run(self: Workers, step: str, on_event: Callable[[Mapping[str, Any]], None]) -> Any:
        kind = step.partition(":")[2]
        tell(kind)

        def told_event(event: Mapping[str, Any]) -> None:
            if current == kind and event["event"] == "progress":
                tell(f"{kind} under way")
            on_event(event)

        items = run(self, step, told_event)
        tell(f"save {kind}")
        return items

    def told_write(self: LockFile, *arguments: Any) -> None:
        kind = current.split(" ")[-1]
        tell(f"lock {kind}")
        write(self, *arguments)
        tell(f"after {kind}")

    def told_decide(self: Engine, verdict: Verdict) -> Any:
        if verdict.action == "restore":
            tell("restore")
        return decide(self, verdict)

    Workers.run = told_run  # type: ignore[method-assign]
    LockFile.write = told_write  # type: ignore[assignment, method-assign]
    Engine._without_running = told_decide  # type: ignore[method-assign]


@dataclass(kw_only=True, slots=True)
class Build:
    """A running `doit` and what it has told of its phases."""

    work: Work
    process: subprocess.Popen[bytes]
    channel: int
    output: Path
    phases: list[tuple[str, float]] = field(default_factory=list)
    """Phases so far and when they began."""
    _rest: bytes = b""

    @classmethod
    def start(cls, work: Work) -> Build:
        """Begin to build in a session of its own."""
        pipe, output = (work.root.with_name(f"{work.root.name}{PIPE}{end}") for end in ("", ".log"))
        if not pipe.exists():
            os.mkfifo(pipe)
        channel = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        paths = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        began = time.monotonic()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(BIN / "doit")],
                cwd=work.root,
                env=warm.reached(environment({"PYTHONPATH": paths})),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(work=work, process=process, channel=channel, output=output, phases=[("start", began)])

    def look(self, patience: float) -> None:
        """Wait at most `patience` seconds for the next phase."""
        readable, _, _ = select.select([self.channel], [], [], patience)
        if not readable:
            return
        read = os.read(self.channel, 65536)
        if not read:  # nobody writes: it has not begun to, or has ended
            time.sleep(min(patience, 0.005))
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in lines:
            at, _, phase = line.decode().partition(" ")
            self.phases.append((phase, float(at)))

    def kill(self, whom: Whom) -> None:
        """Send SIGKILL to the build, its worker, or both with all that they started."""
        found = [pid for pid in workers(self.work) if pid != self.process.pid]
        if whom == "worker" and found:
            os.kill(found[0], signal.SIGKILL)
            return
        self.process.kill()
        for pid in found if whom == "all" else ():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:  # it went with its parent
                continue

    def end(self) -> int:
        """Wait until it and all its workers are gone; return its exit code."""
        code = self.process.wait(timeout=300)
        os.close(self.channel)
        for _ in range(100):
            if not workers(self.work):
                break
            time.sleep(0.05)
        assert workers(self.work) == [], "a worker outlived its build"
        assert b"Traceback" not in self.output.read_bytes(), self.output.read_text()
        return code


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Phases of an undisturbed build, in order, with their seconds."""

    seconds: Mapping[str, float]

    @classmethod
    def of(cls, work: Work) -> Timeline:
        """Build without disturbance."""
        build = Build.start(work)
        while build.process.poll() is None:
            build.look(0.05)
        build.look(0)
        ended = time.monotonic()
        assert build.end() == 0, build.output.read_text()
        return cls(seconds=dict(_lengths(build.phases, ended)))

    def kill(self, work: Work, phase: str, share: float, whom: Whom) -> str | None:
        """Build, and kill `whom` when a share of the phase has passed.

        Returns:
            The phase in which it was hit; None if it ended before.
        """
        build = Build.start(work)
        while build.process.poll() is None:
            due = next((at + share * self.seconds[name] for name, at in build.phases if name == phase), None)
            if due is not None and due - time.monotonic() < 0.002:
                while time.monotonic() < due:
                    pass
                build.kill(whom)
                build.look(0)
                hit = build.phases[-1][0]
                code = build.end()
                assert whom == "worker" or code == -signal.SIGKILL
                return hit
            build.look(0.05 if due is None else max(0.0, min(0.05, due - time.monotonic() - 0.001)))
        assert build.end() == 0, build.output.read_text()
        return None


def _lengths(phases: list[tuple[str, float]], ended: float) -> Iterator[tuple[str, float]]:
    for (phase, at), (_, until) in zip(phases, [*phases[1:], ("", ended)], strict=True):
        yield phase, until - at
