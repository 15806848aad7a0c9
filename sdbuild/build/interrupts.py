"""The message after an interrupt: where the next build resumes, and what is lost."""

from __future__ import annotations

from pathlib import Path

from sdbuild.plan.model import Step

_KEEP_ITEMS = frozenset({"images", "captions", "prior", "latents", "text"})
"""Kinds of steps that store each item when it is done, or soon after."""


class Interrupted(KeyboardInterrupt):
    """The user stopped a step; its message is what the step said of its state, if anything."""

    def __init__(self, said: str = "", *, cut: bool = False) -> None:
        super().__init__(said)
        self.cut = cut
        """The step had no time to save what it had."""


def interrupt_message(step: Step, scratch: Path, error: KeyboardInterrupt, done: tuple[int, int] | None) -> str:
    """Say where the next build resumes.

    Args:
        step: that was stopped.
        scratch: its folder of checkpoints.
        error: as it was raised.
        done: how far the step was shown to be, of how much; None where it was not running.
    """
    where, cut = f"stopped in {step.name}", isinstance(error, Interrupted) and error.cut
    if str(error):
        return f"{where} {error}; doit resumes there"
    if done is None or (step.kind in _KEEP_ITEMS and not cut):
        return f"{where}; doit resumes there"
    if step.kind in _KEEP_ITEMS:
        return f"{where} without saving; doit computes the last items again, earlier ones are stored"
    at, total = done
    saved = _last_checkpoint(scratch) if step.kind == "train" and total else None
    if saved is None:
        lost = f" ({at} of {total} are lost)" if at else ""
        return f"{where}; nothing was saved{lost}, so doit starts it again"
    lost = f"the steps after it, up to step {at}, are lost" if at > saved else "nothing after it is lost"
    return f"{where}; doit resumes after step {saved} of {total}, the last checkpoint, and {lost}"


def _last_checkpoint(scratch: Path) -> int | None:
    """Step of the newest checkpoint; those of other settings were cleared away when the training began."""
    steps = (path.stem.removeprefix("step-") for path in scratch.glob("step-*.safetensors"))
    return max((int(step) for step in steps if step.isdigit()), default=None)
