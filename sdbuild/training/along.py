"""Adapters saved along a training: kept beside its checkpoints until they are written as an out.

An adapter that belongs to a step before a checkpoint is there whenever that checkpoint is: it is written first, and a
checkpoint whose adapters are not all whole is not used. So a training that was killed leaves the files of one that was
not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sdbuild.errors import StepError, disk_full
from sdbuild.training.interrupts import uninterrupted
from sdbuild.training.metadata import hashed
from sdbuild.training.state import TrainingState

IDENTITY = "identity"


def kept_steps(step: int, every: int, most: int | None) -> range:
    """Steps up to `step` whose adapters are kept: each `every`, or, when that were more than `most`, every second …

    What is dropped once is never wanted again, so it does not matter when that is done.
    """
    while most is not None and step // every > most:
        every *= 2
    return range(every, step + 1, every)


def folder_name(step: int) -> str:
    """Name of the folder of a step's adapter."""
    return f"step-{step:06d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Along:
    """The adapters of one training."""

    folder: Path
    """Private to the training; see `finish` for the out."""
    identity: str
    """Of the training; adapters of another are thrown away."""
    every: int
    most: int | None
    steps: int
    """Of the whole training; its last adapter is not saved here."""
    write: Callable[[Path, int], None]
    """Writes the adapter as it is, after so many steps, into a new folder."""

    def wanted(self, step: int) -> list[int]:
        """Steps whose adapters are there after so many."""
        return [each for each in kept_steps(step, self.every, self.most) if each < self.steps]

    def due(self, step: int) -> bool:
        """Whether to save after so many steps."""
        return step < self.steps and step in kept_steps(step, self.every, self.most)

    def __call__(self, state: TrainingState) -> None:
        """Save what the training would end with now, whole or not at all.

        Raises:
            StepError: the disk is full.
        """
        target = self.folder / folder_name(state.step)
        if self._whole(state.step):
            return
        temporary = target.with_name(f".{target.name}.tmp")
        for old in (temporary, target):
            shutil.rmtree(old, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / IDENTITY).write_text(self.identity)
            with uninterrupted():
                with state.kept():
                    self.write(temporary, state.step)
                temporary.replace(target)
        except OSError as error:
            if not disk_full(error):
                raise
            raise StepError(
                f"no room for the adapter after step {state.step}: {error.strerror}",
                "free some space (`sdbuild gc` lists what can go) or set train.save_most; "
                "then doit resumes after the last checkpoint",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def prepare(self) -> None:
        """Throw away what another training left."""
        mark = self.folder / IDENTITY
        if not mark.is_file() or mark.read_bytes() != self.identity.encode():
            shutil.rmtree(self.folder, ignore_errors=True)

    def whole(self, step: int) -> bool:
        """Whether all adapters are there that were saved before so many steps; that of the very step is saved anew."""
        return all(self._whole(each) for each in self.wanted(step) if each < step)

    def thin(self, step: int) -> None:
        """Drop what no training that goes on after so many steps, or later, keeps."""
        wanted = kept_steps(step, self.every, self.most)
        for folder in self.folder.glob("step-*[0-9]"):
            number = int(folder.name.removeprefix("step-"))
            if number <= step and number not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def finish(self, out: Path, taken: int, kept: int) -> None:
        """Write the out: the adapters after `taken` steps, and what they are; `kept` is the step of the result."""
        out.mkdir()
        steps = self.wanted(taken)
        for step in steps:
            shutil.copytree(self.folder / folder_name(step), out / folder_name(step))
        content = {
            "version": 1,
            "steps": taken,
            "result": kept,
            "adapters": [{"step": step, "folder": folder_name(step)} for step in steps],
        }
        (out / "index.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _whole(self, step: int) -> bool:
        files = list((self.folder / folder_name(step)).rglob("*.safetensors"))
        return bool(files) and all(map(_intact, files))


def _intact(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return hashed(tensors).items() <= (file.metadata() or {}).items()
    except (SafetensorError, OSError):
        return False
