"""One step in several processes, on this machine and perhaps on others; when one ends badly, all do.

They find each other by what is in their environment, as torch's launchers have it. How many machines there are, and
which of them this is, says the configuration file of accelerate that `ACCELERATE_CONFIG_FILE` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sdbuild.build.answers import CRASH, INTERRUPTED, Emit, Event, ended, error_of
from sdbuild.build.project import Project
from sdbuild.errors import SdbuildError, StepError, UsageError
from sdbuild.plan.model import Step
from sdbuild.steps.contract import Items

CONFIG = "ACCELERATE_CONFIG_FILE"
"""Environment variable with the path of the configuration that `accelerate config` writes."""
GRACE = 5.0
"""Seconds in which the process that is to blame shows itself, after another one has lost its connection to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the processes of a step are."""

    count: int
    """On all machines."""
    machines: int = 1
    machine: int = 0
    """Number of this one; the first one builds."""
    settings: Mapping[str, str]
    """What accelerate's configuration says of this machine, as environment variables."""

    @property
    def ranks(self) -> range:
        """Numbers of this machine's processes."""
        local = self.count // self.machines
        return range(self.machine * local, (self.machine + 1) * local)

    def environment(self, rank: int, meeting: str) -> dict[str, str]:
        """Return what process `rank` is told."""
        first, local = self.ranks[0], len(self.ranks)
        defaults = {"OMP_NUM_THREADS": str(max(1, _cores() // local))}
        if self.machines == 1 and sys.platform == "linux":
            defaults["GLOO_SOCKET_IFNAME"] = "lo"  # what processes tell each other stays on the machine
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank - first,
            "WORLD_SIZE": self.count,
            "LOCAL_WORLD_SIZE": local,
            "SDBUILD_MEETING": meeting,
        }
        return {**defaults, **os.environ, **self.settings, **{key: str(value) for key, value in own.items()}}


def count_of(step: Step) -> int:
    """How many processes a step's recipe asks for."""
    return int(step.spec.get("train", {}).get("processes", 1))


def run_together(project: Project, step: Step, out: Path, emit: Emit) -> Items:
    """Run a step in as many processes as its recipe asks for; the first of them writes to `out`.

    Raises:
        SdbuildError: as one of them raised it, or StepError if one died.
        KeyboardInterrupt: the user stopped it; the first process has saved its state.
    """
    layout = layout_of(count_of(step))
    if layout.machine:
        raise StepError(
            f"accelerate's configuration says that this is machine {layout.machine}; builds run on machine 0, and here "
            f"`sdbuild join {step.name}`"
        )
    if layout.machines > 1:
        others = "machine 1" if layout.machines == 2 else f"machines 1 to {layout.machines - 1}"
        emit({"event": "warning", "message": f"waits for `sdbuild join {step.name}` on {others}"})
    _free_memory()
    return converse(project, step, out, layout, step.name, emit)


def joining(step: Step) -> Layout:
    """Return where the processes of a step are that another machine's build runs.

    Raises:
        UsageError: accelerate's configuration does not make this one of several machines.
    """
    layout = layout_of(count_of(step))
    if not layout.machine:
        raise UsageError(
            f"joining takes a configuration of accelerate, in the environment variable {CONFIG}, with several machines "
            "(num_machines) of which this is not the first (machine_rank); builds run on the first"
        )
    return layout


def converse(project: Project, step: Step, out: Path, layout: Layout, log: str, emit: Emit) -> Items:
    """Run this machine's processes of a step, whose log is `project.log(log)`.

    Raises:
        SdbuildError: as one of them raised it, or StepError if one died.
    """
    members = Members(project.log(log).relative_to(project.root), layout)
    with tempfile.TemporaryDirectory(prefix="sdbuild-") as folder:
        # torch's `init_method`: by address between machines, by a file, which takes no port, on one.
        meeting = "env://" if layout.machines > 1 else (Path(folder) / "meeting").as_uri()
        try:
            for rank in layout.ranks:
                members.start(rank, {"step": step.name, "out": str(out), "log": log}, project.root, meeting)
            return members.converse(emit)
        finally:
            members.end()


def layout_of(count: int) -> Layout:
    """Return where so many processes are to run.

    Raises:
        StepError: accelerate's configuration cannot be read, or does not go with the recipe.
    """
    path = os.environ.get(CONFIG)
    if not path:
        return Layout(count=count, settings={})
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from yaml import YAMLError

    try:
        config = load_config_from_file(path)
    except (OSError, ValueError, TypeError, YAMLError) as error:
        raise StepError(f"{CONFIG}: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, ClusterConfig):
        raise StepError(f"{CONFIG}: {path} is not for machines of one's own (compute_environment: LOCAL_MACHINE)")
    settings = {"ACCELERATE_USE_CPU": "true"} if config.use_cpu else {}
    if config.gpu_ids not in (None, "all"):
        settings["CUDA_VISIBLE_DEVICES"] = str(config.gpu_ids)
    machines, machine = config.num_machines or 1, config.machine_rank or 0
    if machines == 1:
        return Layout(count=count, settings=settings)
    if count % machines:
        raise StepError(f"train.processes {count} cannot be spread evenly over {machines} machines ({path})")
    if machine >= machines:
        raise StepError(f"{path}: machine_rank {machine} is not less than num_machines {machines}")
    if not config.main_process_ip or not config.main_process_port:
        raise StepError(f"{path}: several machines need main_process_ip and main_process_port")
    settings |= {"MASTER_ADDR": config.main_process_ip, "MASTER_PORT": str(config.main_process_port)}
    return Layout(count=count, machines=machines, machine=machine, settings=settings)


class Members:
    """The processes of a step on this machine."""

    def __init__(self, log: Path, layout: Layout) -> None:
        self._log = log
        self._layout = layout
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def start(self, rank: int, request: Event, root: Path, meeting: str) -> None:
        """Start a process; it ends when its input does, and on Linux with the thread that started it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "sdbuild", "member"],
            cwd=root,
            env=self._layout.environment(rank, meeting),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # Ctrl-C goes to the parent, which decides
        )
        self._processes[rank] = process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        threading.Thread(target=self._listen, args=(rank, process, process.stdout), daemon=True).start()

    def converse(self, emit: Emit) -> Items:
        """Wait for the result: that of the first process, or of all where others' build has the first."""
        try:
            return self._result(emit)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._stop()) from None

    def end(self) -> None:
        """End all that still run."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self._processes.values():
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    def _result(self, emit: Emit) -> Items:
        waiting = set(self._processes)
        wrong: SdbuildError | KeyboardInterrupt | None = None
        while True:
            try:
                rank, event = self._events.get(timeout=None if wrong is None else GRACE)
            except queue.Empty:
                assert wrong is not None
                raise wrong from None
            name = f"process {rank + 1} of {self._layout.count}"
            if event["event"] == "done":
                waiting.discard(rank)
                if rank == 0 or not waiting:
                    return Items(total=event["total"], computed=event["computed"])
            elif event["event"] == "failed":
                # The first knows most. A crash may come of another process's end.
                error = error_of(event)
                if rank == 0 and event["kind"] != CRASH:
                    raise error
                if wrong is None or event["kind"] != CRASH:
                    wrong = StepError(*f"{name}: {error}".split("\n")) if event["kind"] == CRASH else error
            elif event["event"] == "ended":
                error = StepError(f"{name} {ended(event['code'])}; see {self._log}")
                if rank in waiting and event["code"] < 0:
                    raise error
                if rank in waiting:
                    wrong = wrong or error
            else:
                emit(event)

    def _stop(self) -> str:
        """Let the first process save its state; return what it says of it."""
        first = self._processes.get(0)
        if first is None or first.poll() is not None:
            return ""
        first.send_signal(signal.SIGINT)
        while True:
            rank, event = self._events.get()
            if rank == 0 and event["event"] in ("done", "failed", "ended"):
                return str(event["message"]) if event.get("kind") == INTERRUPTED else ""

    def _listen(self, rank: int, process: subprocess.Popen[str], events: IO[str]) -> None:
        with events:
            for line in events:
                self._events.put((rank, json.loads(line)))
        self._events.put((rank, {"event": "ended", "code": process.wait()}))


def _free_memory() -> None:
    """Give back what earlier steps in this process have kept of a GPU's memory, which its processes will need."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
