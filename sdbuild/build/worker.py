"""Running one step: in the worker process that a build keeps, or by itself as `sdbuild step NAME`.

The worker reads requests from its standard input, a JSON object a line, and answers with events on the pipe that was
its standard output; what libraries print goes to the step's log. It ends when its input does, so that it never
outlives the build that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sdbuild.build.answers import Emit, Event, answer_of
from sdbuild.build.dataset_versions import Versions
from sdbuild.build.hand_edits import record_written
from sdbuild.build.processes import converse, count_of, joining, run_together
from sdbuild.build.project import Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.user_files import UserFiles, remember_installed
from sdbuild.errors import DataError, StepError, UsageError, disk_full, of_system
from sdbuild.plan.compile import plan_resolved
from sdbuild.plan.files import dump_recipe_json
from sdbuild.plan.model import Base, Step
from sdbuild.steps.contract import Inputs, Items
from sdbuild.storage.atomic import replace as move
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.backups import make_folder

_QUIET = {
    "HF_HUB_OFFLINE": "1",  # a step reads what is on disk; bases are fetched before it starts
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of steps: what libraries have to say goes to the log, and there is little of it."""
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of steps where the user has set nothing else: threads that wait for others sleep.

OpenMP's would spin, for some ten thousand waits a training step, and take the processor from those they wait for when
the machine does something else too. It is read when torch is loaded.
"""


def step_environment(own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a process that runs steps, from that of the build."""
    return {**PATIENT, **own, **_QUIET}


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """`sdbuild.steps.contract.Context` for a step of a project; events go to `emit`."""

    items: Path
    scratch: Path
    previous: Path
    emit: Emit

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Send progress to whoever shows it."""
        self.emit({"event": "progress", "done": done, "total": total, "unit": unit, "figures": figures})

    def warn(self, message: str) -> None:
        """Send a word to the user."""
        self.emit({"event": "warning", "message": message})


def read_step(project: Project, name: str) -> Step:
    """A step as the last compilation wrote it to `recipe.json`.

    Raises:
        UsageError: there is no such recipe or step.
    """
    recipe, _, kind = name.partition(":")
    path = project.root / "build" / recipe / "recipe.json"
    try:
        content = json.loads(path.read_bytes())
        steps = {step.kind: step for step in plan_resolved(recipe, content["recipe"], Base.of(content["base"]))}
        return replace(steps[kind], spec=content["steps"][kind])  # type: ignore[index]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"no step {name} in build/{recipe}/recipe.json; `doit list --all` shows the steps") from None


def run_alone(project: Project, name: str, emit: Emit) -> Items:
    """Run a step as DVC calls it, outside a build.

    What it is about to read is noted in `recipe.json` first, where DVC takes the parameters from that it records.

    Raises:
        SdbuildError: as the step raised it.
    """
    from sdbuild.build.reads import Reads
    from sdbuild.families import sources

    step = read_step(project, name)
    if step.built_base:  # DVC has just built it
        sources.bring(step.base, project.root)
    stat = StatCache(project.root, project.stat_cache)
    versions = Versions(project, stat)
    if stale := [each for dep in step.deps if (each := versions.overwritten(dep.path))]:
        raise DataError(stale)
    reads = Reads(project, stat).all(step)
    stat.close()
    path = project.root / step.params_file
    content = json.loads(path.read_bytes())
    if content["steps"][step.kind]["reads"] != reads:
        content["steps"][step.kind]["reads"] = reads
        text = dump_recipe_json(content)
        write_atomic(path, text)
        record_written(project, step.params_file, text)
    os.environ.update(step_environment())
    return run_step(project, read_step(project, name), emit)


def take_part(project: Project, name: str) -> None:
    """Run this machine's processes of a step that is built on another machine; nothing is written but a log.

    Raises:
        SdbuildError: as the step raised it.
    """
    os.environ.update(step_environment())
    step = read_step(project, name)
    layout = joining(step)
    log = f"{name}-machine-{layout.machine}"
    with logged(project.log(log)), tempfile.TemporaryDirectory(prefix="sdbuild-") as out:
        converse(project, step, Path(out), layout, log, lambda event: None)


def run_step(project: Project, step: Step, emit: Emit) -> Items:
    """Run a step and put its outs into place.

    Raises:
        SdbuildError: what the step says is wrong; its last outs are untouched then.
    """
    temporary = project.temporary(step.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        items = (run_together if count_of(step) > 1 else _run)(project, step, temporary, emit)
        _install(project, step, temporary, emit)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return items


def _run(project: Project, step: Step, out: Path, emit: Emit) -> Items:
    """Run a step in this process."""
    scratch = project.scratch(step.name)
    scratch.mkdir(parents=True, exist_ok=True)
    context = StepContext(items=project.items, scratch=scratch, previous=project.root / step.folder, emit=emit)
    module = importlib.import_module(f"sdbuild.steps.{step.kind}")
    inputs = _inputs(project, step)
    if step.kind in ("images", "captions"):  # what comes after may take long, cost money, and be for nothing
        _check_compatibility(project, step)
    if step.kind == "latents":
        _check_compatibility(project, step)
        training = read_step(project, f"{step.recipe}:train")
        importlib.import_module("sdbuild.steps.train").check(training.spec, inputs.base)
        fit = importlib.import_module("sdbuild.steps.fit")
        fit.check_before(training.spec, inputs.base, inputs.images, context.warn)
    items: Items = module.run(step.spec, inputs, out, context)
    return items


def _check_compatibility(project: Project, step: Step) -> None:
    """Make sure that a recipe can be trained on its base and drawn, if the base is there."""
    from sdbuild.families.sources import find

    path = project.root / step.params_file
    steps = json.loads(path.read_bytes())["steps"]
    compatibility = importlib.import_module("sdbuild.steps.compatibility")
    if compatibility.needs_networks(steps):
        absent = any(not (project.root / dep.path).exists() for dep in step.base.deps)
        base = None if absent else find(step.base, project.root)
        if base is not None:
            compatibility.check(steps, base, project.root)


def _inputs(project: Project, step: Step) -> Inputs:
    known = {"images.jsonl": "images", "captions.jsonl": "captions"}
    known |= {name: name for name in ("prior", "latents", "text", "adapter", "adapters", "extracted")}
    found: dict[str, Path] = {}
    for dep in step.deps:
        name = known.get(Path(dep.path).name)
        if name is not None and dep.path.startswith(f"{step.folder}/"):
            found[name] = project.root / dep.path
    if step.components:
        found["base"] = _base(project, step.base)
    return Inputs(project=project.root, trackers=project.trackers, how=step.how, **found)


def _base(project: Project, base: Base) -> Path:
    from sdbuild.families.sources import find

    folder = find(base, project.root)
    if folder is None:
        raise StepError(f"base {base.model} is not ready on this machine; `doit` brings it")
    return folder


def _install(project: Project, step: Step, temporary: Path, emit: Emit) -> None:
    """Move the outs of a step into place, each by one rename; files of the user's there are kept beside them."""
    old = temporary / ".old"
    old.mkdir()
    for out in step.outs:
        if not (temporary / Path(out.path).name).exists():
            raise StepError(f"{step.name} did not write {out.path}; this is a bug in sdbuild")
    make_folder(project.root, step.folder)
    with contextlib.closing(StatCache(project.root, project.stat_cache)) as stat:
        for words in UserFiles(project, stat).keep(step):
            emit({"event": "warning", "message": words})
    remember_installed(project, step, temporary)
    for out in step.outs:
        target = project.root / out.path
        if target.is_dir() and not target.is_symlink():
            move(target, old / target.name)
        move(temporary / target.name, target)


def serve(project: Project) -> int:
    """The worker's life: run the steps that are asked for until the input ends."""
    die_with_parent()
    emit = _channel()
    for line in _requests():
        name = json.loads(line)["step"]

        def run(name: str = name) -> Items:
            return run_step(project, read_step(project, name), emit)

        with logged(project.log(name)):
            emit(answer_of(run, partial(_told, project, name, project.log(name))))
        gc.collect()
    return 0


def be_member(project: Project) -> int:
    """The life of one process of several that run a step: its answer, then the end, which the parent decides."""
    die_with_parent()
    emit = _channel()
    requests = _requests()
    request = json.loads(next(requests))
    name, first = request["step"], os.environ["RANK"] == "0"
    if not first:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first saves what all have

    def tell(event: Event) -> None:
        if first:
            emit(event)

    def run() -> Items:
        return _run(project, read_step(project, name), Path(request["out"]), tell)

    emit(answer_of(run, partial(_told, project, name, project.log(request["log"]))))
    for _ in requests:
        pass
    return 0


def _channel() -> Emit:
    """Return a way to send events on the standard output, to which nothing else goes from now on."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            channel.write(json.dumps(event) + "\n")

    return emit


def _told(project: Project, name: str, log: Path, error: Exception) -> str:
    """Say what escaped from a step."""
    if isinstance(error, OSError) and disk_full(error):
        return f"{name}: {_no_room(project, error)}"
    where = log.relative_to(project.root)
    if isinstance(error, OSError) and error.filename:
        return f"{name}: {of_system(error)} (full log: {where})"
    return f"{name} failed: {type(error).__name__}: {_first_line(error)}; full log: {where}"


def _no_room(project: Project, error: OSError) -> str:
    what = f"{error.filename}: " if error.filename else ""
    free = shutil.disk_usage(project.private).free >> 20
    return (
        f"{what}{error.strerror} ({free} MiB free in {project.private.name}); what was built before is in place\n"
        "free some space (`sdbuild gc` lists what can go) and run doit again"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _requests() -> Iterator[str]:
    """Lines of the standard input, read by a thread that ends the process when its parent is gone."""
    arrived = threading.Condition()
    lines: list[str] = []
    idle = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            with arrived:
                lines.append(line)
                arrived.notify()
        if not idle.is_set():  # the parent died while a step runs: nobody is left to take its result
            os._exit(1)
        with arrived:
            lines.append("")
            arrived.notify()

    threading.Thread(target=read, daemon=True).start()
    while True:
        with arrived:
            idle.set()
            while not lines:
                arrived.wait()
            line = lines.pop(0)
            idle.clear()
        if not line:
            return
        yield line


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send everything that is printed, by C code too, to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with path.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for kept, target in zip(before, (1, 2), strict=True):
            os.dup2(kept, target)
            os.close(kept)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the end of the input does it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
