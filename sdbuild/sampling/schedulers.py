"""Samplers by the names that people know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """A scheduler class of diffusers and how it is set up."""

    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the base's own scheduler configuration."""
    label: str
    """Name in A1111's picture parameters."""


SCHEDULERS = {
    "ddim": Scheduler(cls="DDIMScheduler", label="DDIM"),
    "ddpm": Scheduler(cls="DDPMScheduler", label="DDPM"),
    "euler": Scheduler(cls="EulerDiscreteScheduler", label="Euler"),
    "euler-a": Scheduler(cls="EulerAncestralDiscreteScheduler", label="Euler a"),
    "dpm++": Scheduler(
        cls="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2},
        label="DPM++ 2M",
    ),
}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Make a scheduler for a base with the scheduler configuration `config`."""
    import diffusers

    scheduler = SCHEDULERS[name]
    return getattr(diffusers, scheduler.cls).from_config(config, **scheduler.settings)
