"""Commands in forks of a process that has imported everything: what a test runs starts in milliseconds.

Starting Python, DVC and torch takes seconds, a test of a build starts several, and the suite has hundreds of them.
`run` does what `subprocess.run` does for `doit`, `sdbuild` and `dvc`: the process is a fork of one that has loaded the
same modules, with the arguments, folder, environment and pipes of the call. Workers of a build are forks too. Tests
of processes themselves (kills, interrupts, `dvc repro`) start real ones. `SDBUILD_TESTS_WARM=0` does so everywhere.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

ADDRESS = "SDBUILD_TESTS_SERVERS"
"""Variable with the folder of the servers' sockets."""
AT_IMPORT = (
    "PYTHON",
    "HF_",
    "HUGGINGFACE",
    "TRANSFORMERS_",
    "DIFFUSERS_",
    "TOKENIZERS_",
    "OMP_",
    "MKL_",
    "TORCH_",
    "LD_",
)
"""Beginnings of variables that are read when a module is loaded: a fork cannot have others than its server."""
COMMANDS = ("doit", "sdbuild", "dvc")
REPOSITORY = str(Path(__file__).parents[1])

_folder: Path | None = None
_servers: list[subprocess.Popen[bytes]] = []


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it prints, in a fork if there is a server for it."""
    address = _server("commands", env) if Path(command[0]).name in COMMANDS else None
    if address is None:
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        files = [nothing.fileno(), out.fileno(), err.fileno()]
        fork = Fork(address, [Path(command[0]).name, *command[1:]], cwd, {**env, ADDRESS: str(address.parent)}, files)
        try:
            code = fork.wait(timeout)
        except subprocess.TimeoutExpired:
            fork.send_signal(signal.SIGKILL)
            raise
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode().replace("\r\n", "\n"))
    return subprocess.CompletedProcess(command, code, *printed)


class Fork:
    """A process that a server has forked: what a build needs of `subprocess.Popen`."""

    stdin: IO[str] | None = None
    stdout: IO[str] | None = None

    def __init__(
        self,
        address: Path,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        files: Sequence[int],
        session: bool = False,
    ) -> None:
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "session": session}
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(str(address))
        content = json.dumps(request).encode()
        socket.send_fds(self._channel, [len(content).to_bytes(8, "big")], files)
        self._channel.sendall(content)
        self._answers = self._channel.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self.returncode = int(self._answers.readline())
            except TimeoutError:
                raise subprocess.TimeoutExpired("fork", timeout or 0) from None
            self._answers.close()
            self._channel.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)


def reached(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment from which a real process reaches the servers, if it calls `fork_workers`."""
    address = _server("commands", env)
    return dict(env) if address is None else {**env, ADDRESS: str(address.parent)}


def fork_workers() -> None:
    """Have this process start workers of builds, and what looks at networks for `check`, as forks."""
    stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": _worker, "run": _prober})
    for name in ("workers", "probing"):
        vars(importlib.import_module(f"sdbuild.build.{name}"))["subprocess"] = stand_in


def _worker(command: Sequence[str], **options: Any) -> Any:
    """Stand in for `subprocess.Popen` where a build starts a worker."""
    address = _server("workers", options["env"])
    if address is None:
        return subprocess.Popen(command, **options)
    (child_in, stdin), (stdout, child_out) = os.pipe(), os.pipe()
    files = [child_in, child_out, options["stderr"].fileno()]
    fork = Fork(address, ["sdbuild", *command[3:]], options["cwd"], options["env"], files, session=True)
    os.close(child_in)
    os.close(child_out)
    fork.stdin = os.fdopen(stdin, "w", encoding="utf-8")
    fork.stdout = os.fdopen(stdout, "r", encoding="utf-8")
    return fork


def _prober(command: Sequence[str], **options: Any) -> Any:
    """Stand in for `subprocess.run` where networks are looked at."""
    address = _server("workers", options["env"])
    if address is None:
        return subprocess.run(command, **options)
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        asked.write(options["input"].encode())
        asked.seek(0)
        files = [asked.fileno(), answered.fileno(), options["stderr"].fileno()]
        code = Fork(address, ["sdbuild", *command[3:]], options["cwd"], options["env"], files).wait()
        answered.seek(0)
        return subprocess.CompletedProcess(command, code, answered.read().decode())


def _server(kind: str, env: Mapping[str, str]) -> Path | None:
    """Return the address of a server with this environment; None if commands are to be real ones."""
    if sys.platform != "linux" or os.environ.get("SDBUILD_TESTS_WARM") == "0":
        return None
    known = os.environ.get(ADDRESS)
    folder = Path(known) if known else _started(env)
    try:
        served = json.loads((folder / f"{kind}.json").read_text())
    except OSError:
        return None
    return folder / kind if _at_import(env) == served else None


def _at_import(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that modules read, without the repository's own place, which all servers know."""
    found = {name: value for name, value in env.items() if name.startswith(AT_IMPORT)}
    places = found.pop("PYTHONPATH", "").split(os.pathsep)
    return {**found, "PYTHONPATH": os.pathsep.join(place for place in places if place != REPOSITORY)}


def _started(env: Mapping[str, str]) -> Path:
    """Start the servers of this test process, once."""
    global _folder
    if _folder is not None:
        return _folder
    from sdbuild.build.worker import step_environment

    _folder = Path(tempfile.mkdtemp(prefix="sdbuild-warm-"))
    for kind, own in (("commands", env), ("workers", step_environment(env))):
        (_folder / f"{kind}.json").write_text(json.dumps(_at_import(own)))
        paths = os.pathsep.join(filter(None, [REPOSITORY, os.environ.get("PYTHONPATH")]))
        _servers.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(_folder / kind)],
                env={**own, "PYTHONPATH": paths},
                stdin=subprocess.PIPE,  # its end ends the server
                stdout=subprocess.PIPE,
            )
        )
    for server in _servers:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "a server of commands did not start"
    atexit.register(_stop)
    return _folder


def _stop() -> None:
    for server in _servers:
        server.kill()
        server.wait()
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                pipe.close()
    if _folder is not None:
        for path in _folder.iterdir():
            path.unlink()
        _folder.rmdir()


def _load(kind: str) -> None:
    """Import what the commands, or the workers of a build, import."""
    import sdbuild

    rooms = ("steps", "training", "methods", "families", "sampling", "data", "captioners")
    light = ("recipe", "plan", "build", "commands", "report", "review", "data", "storage", "cli", "console", "scaffold")
    for module in pkgutil.walk_packages(sdbuild.__path__, "sdbuild."):
        if module.name.split(".")[1] in (rooms if kind == "workers" else light):
            importlib.import_module(module.name)
    if kind == "workers":
        import diffusers
        import transformers

        for name in ("AutoencoderKL", "UNet2DConditionModel", "StableDiffusionPipeline", "DDPMScheduler"):
            getattr(diffusers, name)
        for name in ("CLIPTextModel", "CLIPTokenizer"):
            getattr(transformers, name)
        importlib.import_module("sdbuild.build.worker")
        return
    for name in ("doit.doit_cmd", "dvc.cli", "dvc.repo", "dvc.cachemgr", "dvc.data_cloud", "scmrepo.git"):
        importlib.import_module(name)
    from dvc.cli.parser import get_main_parser
    from pydantic import ValidationError

    from sdbuild.recipe.models import Recipe

    get_main_parser()
    with contextlib.suppress(ValidationError):  # the validators are made at their first use
        Recipe.model_validate({})


class _Server:
    """Forks a process for each request and tells its exit code."""

    def __init__(self, address: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._woken, wake = socket.socketpair()
        self._woken.setblocking(False)
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake = wake
        self._running: dict[int, socket.socket] = {}

    def serve(self) -> NoReturn:
        """Answer requests until whoever started this process has gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, self._answer)
            selector.register(self._woken, selectors.EVENT_READ, self._reap)
            selector.register(sys.stdin, selectors.EVENT_READ, lambda: os._exit(0))
            while True:
                for key, _ in selector.select():
                    key.data()

    def _answer(self) -> None:
        channel, _ = self._listener.accept()
        files: list[int] = []
        try:
            length, files, _, _ = socket.recv_fds(channel, 8, 3)
            content = channel.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
            request = json.loads(content)
            pid = self._fork(channel, request, files)
            self._running[pid] = channel
            channel.sendall(f"{pid}\n".encode())
        except (OSError, ValueError):  # whoever asked was killed meanwhile
            if channel not in self._running.values():
                channel.close()
        for file in files:
            os.close(file)

    def _fork(self, channel: socket.socket, request: Mapping[str, Any], files: Sequence[int]) -> int:
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            channel.close()
            for other in self._running.values():
                other.close()
            _become(request, files)
        return pid

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            channel = self._running.pop(pid)
            with contextlib.suppress(OSError):  # whoever asked has gone
                channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            channel.close()


def _become(request: Mapping[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, and end."""
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        if file > 2:
            os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.executable).parent)
    code = 1
    try:
        code = _main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _main(arguments: Sequence[str]) -> int:
    fork_workers()
    name, *rest = arguments
    if name == "doit":
        from doit.doit_cmd import DoitMain

        return int(DoitMain().run(rest) or 0)
    if name == "dvc":
        from dvc.cli import main as dvc

        return int(dvc(rest))
    from sdbuild.cli import main as sdbuild

    return sdbuild(rest)


def main() -> None:
    """Serve at the address that is given."""
    address = Path(sys.argv[1])
    _load(address.name)
    atexit._clear()
    gc.collect()
    gc.freeze()
    server = _Server(address)
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    main()
