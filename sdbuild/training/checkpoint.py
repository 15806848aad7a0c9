"""Checkpoints: all that the next step needs, written whole or not at all.

A checkpoint is one safetensors file: tensors under their names, the other values as JSON in its header, with the
digest of the tensors and the identity of the training (spec and data) that it belongs to. Two are kept, so that one
that a power cut damaged costs one interval. Another `FORMAT` or identity is left aside and cleared away.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdbuild.errors import StepError, disk_full
from sdbuild.storage.atomic import remove
from sdbuild.training.tensorfile import content_digest, write_tensors

FORMAT = 2
KEPT = 2
SHARE = 0.01
"""Largest share of the time that checkpoints may take; they are put off when the disk is slow or steps are quick."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The state of a training between two steps."""

    step: int
    """Steps done."""
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    """JSON-able."""


class Beside(Protocol):
    """Files that belong to checkpoints but are not in them."""

    def prepare(self) -> None:
        """Make ready, before any checkpoint is looked at."""

    def whole(self, step: int) -> bool:
        """Whether all is there that belongs to a checkpoint of this step."""

    def thin(self, step: int) -> None:
        """Drop what no checkpoint from this step on needs."""


@dataclass(kw_only=True, slots=True)
class Checkpoints:
    """The checkpoints of one training in one folder."""

    folder: Path
    identity: str
    """Digest of everything that decides the training's result."""
    every: int
    """Steps between checkpoints."""
    warn: Callable[[str], None]
    beside: Beside | None = None
    saved: int | None = None
    """Step of the newest checkpoint."""
    _cost: float = field(default=0.0, init=False)
    _ended: float = field(default_factory=time.monotonic, init=False)

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint now; a matter of time, which never changes results."""
        if step % self.every or step == (self.saved or 0):
            return False
        return time.monotonic() - self._ended >= self._cost / SHARE

    @property
    def kept(self) -> str:
        """What is left when the training ends early, for messages."""
        return f"the state after step {self.saved} is kept" if self.saved else "no state was saved yet"

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and drop all but the newest two.

        Raises:
            StepError: the disk is full; the checkpoints before are as they were.
        """
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        header = {
            "format": FORMAT,
            "identity": self.identity,
            "digest": content_digest(snapshot.tensors),
            "step": snapshot.step,
            "values": snapshot.values,
        }
        path = self.folder / f"step-{snapshot.step:09d}.safetensors"
        try:
            write_tensors(path, snapshot.tensors, {"sdbuild": json.dumps({**header, "check": _check(header)})})
        except OSError as error:
            if not disk_full(error):
                raise
            raise StepError(
                f"no room for a checkpoint of {_mebibytes(snapshot)} MiB after step {snapshot.step}: {error.strerror}; "
                f"{self.kept}",
                "free some space (`sdbuild gc` lists what can go), then doit "
                + ("resumes there" if self.saved else "begins the training again"),
            ) from error
        for old in self._paths()[KEPT:]:
            old.unlink()
        if self.beside is not None:
            self.beside.thin(int(self._paths()[-1].stem.removeprefix("step-")))
        self.saved = snapshot.step
        self._ended = time.monotonic()
        self._cost = self._ended - began

    def load(self) -> Snapshot | None:
        """Return the newest good checkpoint of this training, and clear away all others but its predecessors."""
        if self.beside is not None:
            self.beside.prepare()
        for path in self._paths():
            try:
                header, tensors = _read(path)
                check = header.pop("check", None)  # of the tensors there is a digest; older ones have none of the rest
                if check not in (None, _check(header)):
                    raise ValueError("its header is damaged")
                if header["format"] == FORMAT and header["identity"] != self.identity:
                    path.unlink()
                    continue
                if header["format"] != FORMAT:
                    self.warn(f"{path.name} was written by another version of sdbuild and is not used")
                elif header["digest"] != content_digest(tensors):
                    self._tell_damaged(path)
                elif self.beside is not None and not self.beside.whole(header["step"]):
                    self._tell(path, "lacks adapters that were saved before it")
                else:
                    self.saved = header["step"]
                    return Snapshot(step=header["step"], tensors=tensors, values=header["values"])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
                self._tell_damaged(path)
            remove(path)
        return None

    def _tell_damaged(self, path: Path) -> None:
        self._tell(path, "is damaged")

    def _tell(self, path: Path, what: str) -> None:
        others = "the checkpoint before it" if path != self._paths()[-1] else "the beginning"
        self.warn(f"{path.name} {what} and is not used; going on from {others}")

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)


def _mebibytes(snapshot: Snapshot) -> int:
    return -(-sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values()) // (1 << 20))


def _check(header: Mapping[str, Any]) -> int:
    """Checksum of what a checkpoint says beside its tensors."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})["sdbuild"])
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
