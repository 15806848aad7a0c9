"""Trackers, such as TensorBoard, that are told how a training goes: by name, through accelerate.

They look on and nothing else: which of them are told, or that one is in trouble, changes no result and stops nothing.
Keys of services come from the environment or from the service's own login, never from a recipe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdbuild.training.state import TrainingState

PROJECT = "sdbuild"
"""What services group runs under."""


def _arguments(name: str, folder: Path, run: str) -> Mapping[str, Any]:
    """What a tracker of accelerate takes to write below `folder`, if it writes anything here."""
    known: Mapping[str, Mapping[str, Any]] = {
        "tensorboard": {"run_name": run, "logging_dir": folder},
        "aim": {"run_name": run, "logging_dir": folder},
        "wandb": {"run_name": PROJECT, "name": run, "dir": folder},
        "mlflow": {"experiment_name": PROJECT, "run_name": run},
        "comet_ml": {"run_name": PROJECT},
        "clearml": {"run_name": run},
        "trackio": {"run_name": PROJECT, "name": run},
        "swanlab": {"run_name": PROJECT, "experiment_name": run, "logdir": str(folder)},
    }
    return known[name]


class Trackers:
    """The trackers of one training."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path | None,
        rate_of: Callable[[int], float],
        warn: Callable[[str], None],
    ) -> None:
        """Name them, without any effect yet.

        Args:
            names: keys of `recipe.libraries.TRACKERS`, all of them installed.
            folder: for what they write here; needed where there are names.
            rate_of: learning rate at each step, from 0.
            warn: told when one is in trouble.
        """
        self._names = names
        self._folder = folder
        self._rate_of = rate_of
        self._warn = warn
        self._told: dict[str, Any] = {}
        self._steps: int | None = None
        self._rows = 0

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Within it they are told; a run of the same name is gone on with."""
        for tracker in self._names:
            self._start(tracker, name)
        try:
            yield
        finally:
            for tracker, found in list(self._told.items()):
                with self._unharmed(tracker):
                    found.finish()

    def __call__(self, state: TrainingState) -> None:
        """Tell what is new: losses that have been read from the device, and validations."""
        if not self._told:
            return
        if self._steps is None:  # what earlier sessions did, they told
            self._steps, self._rows = len(state.losses), len(state.measured.rows)
        for step in range(self._steps, len(state.losses)):
            self._log({"loss": state.losses[step], "learning_rate": self._rate_of(step)}, step + 1)
        for step, loss in state.measured.rows[self._rows :]:
            base = state.measured.base
            self._log({"validation_loss": loss, **({} if base is None else {"validation_loss_base": base})}, step)
        self._steps, self._rows = len(state.losses), len(state.measured.rows)

    def _start(self, name: str, run: str) -> None:
        assert self._folder is not None
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        folder = (self._folder / name).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if name == "mlflow":  # else it writes to the working directory
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'runs.db'}")
        with self._unharmed(name):
            tracker = LOGGER_TYPE_TO_CLASS[name](**_arguments(name, folder, run))
            getattr(tracker, "start", lambda: None)()  # older ones begin when they are made
            self._told[name] = tracker

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._told.items()):
            with self._unharmed(name):
                tracker.log(values, step=step)

    @contextmanager
    def _unharmed(self, name: str) -> Iterator[None]:
        """Go on without a tracker that is in trouble, whatever its library raises."""
        try:
            yield
        except Exception as error:
            self._told.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._warn(f"train.trackers: {name} gets no more metrics: {reason}")
