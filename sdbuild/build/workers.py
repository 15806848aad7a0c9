"""Worker processes, seen from the build: started once, reused by its steps, gone when it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sdbuild.build.answers import INTERRUPTED, ended, error_of
from sdbuild.build.interrupts import Interrupted
from sdbuild.build.project import Project
from sdbuild.build.worker import step_environment
from sdbuild.errors import StepError
from sdbuild.steps.contract import Items

PATIENCE = 30.0
"""Seconds that a step has to save its state when it is interrupted."""


class Workers:
    """A pool that grows to as many processes as steps run at once."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._idle: list[subprocess.Popen[str]] = []
        self._all: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        # A worker dies with the thread that started it (Linux), and the threads of a parallel build come and go.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")

    def run(self, step: str, on_event: Callable[[Mapping[str, Any]], None]) -> Items:
        """Run a step in a worker; progress and warnings go to `on_event`.

        Raises:
            SdbuildError: as the step raised it, or StepError if the worker died.
        """
        process = self._take()
        try:
            answer = self._converse(process, step, on_event)
        except BaseException:
            self._kill(process)
            raise
        if answer is None:
            code = process.wait()
            self._kill(process)
            log = self._project.log(step).relative_to(self._project.root)
            raise StepError(f"{step}: its process {ended(code)}; see {log}")
        with self._lock:
            self._idle.append(process)
        if answer["event"] == "failed":
            raise error_of(answer)
        return Items(total=answer["total"], computed=answer["computed"])

    def interrupt(self) -> None:
        """Ask all steps that run to save their state and end; whoever runs them is told."""
        with self._lock:
            busy = [process for process in self._all if process not in self._idle]
        for process in busy:
            process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End all workers at once, whatever they do."""
        with self._lock:
            processes = list(self._all)
        for process in processes:
            self._kill(process)

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            processes, self._all, self._idle = self._all, [], []
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._kill(process)
            if process.stdout is not None:
                process.stdout.close()
        self._starter.shutdown()

    def _take(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            process = self._starter.submit(self._start).result()
            self._all.append(process)
            return process

    def _start(self) -> subprocess.Popen[str]:
        noise = self._project.private / "logs" / "worker.log"
        noise.parent.mkdir(parents=True, exist_ok=True)
        with noise.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sdbuild", "worker"],
                cwd=self._project.root,
                env=step_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C goes to the build, which decides
            )

    def _converse(
        self, process: subprocess.Popen[str], step: str, on_event: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any] | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"step": step}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] in ("done", "failed"):
                    return dict(event)
                on_event(event)
        except KeyboardInterrupt:
            raise self._interrupt(process) from None
        return None

    def _interrupt(self, process: subprocess.Popen[str]) -> Interrupted:
        """Let a step save its state before the worker goes; return what it says. A second Ctrl-C waits no longer."""
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        patience = threading.Timer(PATIENCE, lambda: self._kill(process))
        patience.start()
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] in ("done", "failed"):
                    return Interrupted(event["message"] if event.get("kind") == INTERRUPTED else "")
        except KeyboardInterrupt:
            pass
        finally:
            patience.cancel()
        return Interrupted(cut=True)

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with self._lock:
            if process in self._all:
                self._all.remove(process)
