"""Samplers by the names that people know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdbuild.errors import DataError, Problem

FLOW = "FlowMatch"
"""What the names of diffusers' schedulers for rectified flows begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """A scheduler class of diffusers and how it is set up."""

    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the base's own scheduler configuration."""
    label: str
    """Name in A1111's picture parameters."""
    flow: str | None = None
    """The class for bases of a rectified flow; None if there is none."""


SCHEDULERS = {
    "ddim": Scheduler(cls="DDIMScheduler", label="DDIM"),
    "ddpm": Scheduler(cls="DDPMScheduler", label="DDPM"),
    "euler": Scheduler(cls="EulerDiscreteScheduler", label="Euler", flow="FlowMatchEulerDiscreteScheduler"),
    "euler-a": Scheduler(cls="EulerAncestralDiscreteScheduler", label="Euler a"),
    "dpm++": Scheduler(
        cls="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2},
        label="DPM++ 2M",
        flow="DPMSolverMultistepScheduler",
    ),
}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Make a scheduler for a base with the scheduler configuration `config`.

    Raises:
        DataError: the base is a rectified flow, for which there is no such scheduler.
    """
    import diffusers

    scheduler = SCHEDULERS[name]
    flow = str(config.get("_class_name", "")).startswith(FLOW) or config.get("use_flow_sigmas", False)
    if not flow:
        return getattr(diffusers, scheduler.cls).from_config(config, **scheduler.settings)
    if scheduler.flow is None:
        known = " or ".join(name for name, each in SCHEDULERS.items() if each.flow)
        raise DataError([Problem(field="sample.scheduler", message=f"{name} does not draw with flows; use {known}")])
    shift = config["shift"] if "shift" in config else config.get("flow_shift", 1.0)
    if scheduler.flow.startswith(FLOW):
        return getattr(diffusers, scheduler.flow).from_config(config, shift=shift)
    settings = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    own = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
    return getattr(diffusers, scheduler.flow)(**scheduler.settings, **settings, **own)
