"""Samplers by the names that people know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdbuild.errors import DataError, Problem

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
"""What diffusers calls the recipe's `train.prediction`."""
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
    predictions: frozenset[str] = frozenset({"epsilon", "v", "x0"})
    """What it can draw with on other bases."""


SCHEDULERS = {
    "ddim": Scheduler(cls="DDIMScheduler", label="DDIM"),
    "ddpm": Scheduler(cls="DDPMScheduler", label="DDPM"),
    "euler": Scheduler(cls="EulerDiscreteScheduler", label="Euler", flow="FlowMatchEulerDiscreteScheduler"),
    "euler-a": Scheduler(
        cls="EulerAncestralDiscreteScheduler", label="Euler a", predictions=frozenset({"epsilon", "v"})
    ),
    "dpm++": Scheduler(
        cls="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2},
        label="DPM++ 2M",
        flow="DPMSolverMultistepScheduler",
        predictions=frozenset({"epsilon", "v", "x0", "flow"}),
    ),
}


def check_scheduler(name: str, config: Mapping[str, Any], *, prediction: str | None = None) -> None:
    """Make sure that there is such a scheduler for what is predicted; see `make_scheduler`.

    Raises:
        DataError: there is none.
    """
    scheduler = SCHEDULERS[name]
    if _is_flow(config):
        if scheduler.flow is None:
            known = " or ".join(name for name, each in SCHEDULERS.items() if each.flow)
            message = f"{name} does not draw with flows; use {known}"
            raise DataError([Problem(field="sample.scheduler", message=message)])
    elif prediction is not None and prediction not in scheduler.predictions:
        known = " or ".join(each for each, other in SCHEDULERS.items() if prediction in other.predictions)
        message = f"{name} does not draw where {prediction} is predicted; use {known}"
        raise DataError([Problem(field="sample.scheduler", message=message)])


def _is_flow(config: Mapping[str, Any]) -> bool:
    return str(config.get("_class_name", "")).startswith(FLOW) or bool(config.get("use_flow_sigmas", False))


def make_scheduler(
    name: str,
    config: Mapping[str, Any],
    *,
    prediction: str | None = None,
    zero_terminal_snr: bool = False,
    steps: int = 1,
) -> Any:
    """Make a scheduler for a base with the scheduler configuration `config`.

    Args:
        name: as recipes call it.
        config: of the base's own scheduler.
        prediction: what an adapter has taught it to predict, as recipes call it; None for what it did before.
        zero_terminal_snr: whether the last timestep was noise alone; then drawing begins there (Lin et al. 2023, 3.3).
        steps: that it will take.

    Raises:
        DataError: there is no such scheduler for what is predicted.
    """
    import diffusers

    check_scheduler(name, config, prediction=prediction)
    scheduler, flow = SCHEDULERS[name], _is_flow(config)
    if not flow and prediction == "flow":
        config = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
    elif not flow:
        learned: dict[str, Any] = {} if prediction is None else {"prediction_type": PREDICTIONS[prediction]}
        if zero_terminal_snr:
            learned |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        made = getattr(diffusers, scheduler.cls).from_config(config, **scheduler.settings, **learned)
        if steps >= made.config.num_train_timesteps and made.config.timestep_spacing == "leading":
            # Every timestep is wanted; counted from below they go past the last one, or all are the first one.
            made.register_to_config(timestep_spacing="trailing")
        return made
    assert scheduler.flow is not None
    shift = config["shift"] if "shift" in config else config.get("flow_shift", 1.0)
    if scheduler.flow.startswith(FLOW):
        return getattr(diffusers, scheduler.flow).from_config(config, shift=shift)
    settings = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": PREDICTIONS["flow"]}
    own = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
    return getattr(diffusers, scheduler.flow)(**scheduler.settings, **settings, **own)
