"""A training without a base: two factors as adapter and denoiser, random latents, the real loop and objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import Parameter

from sdbuild.families.contract import NoiseSchedule
from sdbuild.recipe.train import Train
from sdbuild.steps.train import _objectives
from sdbuild.training import optimizers
from sdbuild.training.ema import Average
from sdbuild.training.examples import Batch, Batches, Example
from sdbuild.training.guard import nothing_of
from sdbuild.training.loop import Plan, Progress, train
from sdbuild.training.noise import Colour
from sdbuild.training.parallel import ALONE, Processes, SharedCheckpoints
from sdbuild.training.schedules import rate_at
from sdbuild.training.state import TrainingState
from sdbuild.training.timesteps import chooser

SHAPE = (4, 8, 8)
RANK = 16
"""The factors have 4096 elements each, from which on 8-bit optimizers quantise."""
CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule(
    alphas_cumprod=DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod.double(),
    prediction_type="v_prediction",
)


class Factors:
    """B A, as a LoRA of nothing."""

    def __init__(self) -> None:
        chance = torch.Generator().manual_seed(0)
        self.a = Parameter(torch.randn(RANK, 256, generator=chance) / 16)
        self.b = Parameter(torch.zeros(256, RANK))

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        return [("unet.x.lora_A.weight", self.a), ("unet.x.lora_B.weight", self.b)]

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def export(self, key_map: Any, name: str) -> dict[str, dict[str, Tensor]]:
        raise AssertionError

    def summary(self) -> dict[str, str]:
        raise AssertionError

    def train(self, mode: bool) -> None:
        raise AssertionError

    @contextmanager
    def disabled(self) -> Iterator[None]:
        raise AssertionError
        yield

    def set_strength(self, strength: float) -> None:
        raise AssertionError

    def merge(self) -> None:
        raise AssertionError

    def predict(self, noisy: Tensor) -> Tensor:
        return (noisy.flatten(1) @ self.a.T @ self.b.T).view_as(noisy)


def settings_of(**train: Any) -> Train:
    return Train.model_validate({"steps": 10, "batch": 3, "learning_rate": 0.01, "checkpoint_every": 2, **train})


def latent(key: str) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(int(key))
    return {"mean": torch.randn(SHAPE, generator=chance), "logvar": torch.full(SHAPE, -4.0)}


def begin(settings: Train, processes: Processes = ALONE) -> tuple[Plan, TrainingState, Factors]:
    """What the train step makes of its settings, for records 0 to 5 in turns."""
    factors = Factors()
    objective, _ = _objectives(settings, SCHEDULE, CPU)
    examples = [
        Example(key=name, dataset=0, digest=name, text="", texts=("",), latents=(name,), shape=SHAPE)
        for name in map(str, range(6))
    ]
    count = settings.batch * settings.accumulate
    batches = Batches(
        choose=lambda step: [examples[(step * count + place) % 6] for place in range(count)],
        size=settings.batch,
        latent=latent,
        scale=lambda x: x,
        conditions=lambda texts: {},
        seed=settings.seed,
        timesteps=1000,
        caption_dropout=0.0,
        device=CPU,
        timestep_of=chooser(settings.timesteps.model_dump(), SCHEDULE),
        colour=Colour(**settings.noise.model_dump(exclude={"zero_terminal_snr"})),
        share=processes.share,
    )

    def losses_of(batch: Batch) -> Tensor:
        prediction = factors.predict(objective.noisy(batch.x, batch.shown, batch.timesteps))
        return objective.losses(prediction, batch.x, batch.noise, batch.timesteps)

    groups = optimizers.group(
        factors.parameters(),
        learning_rate=settings.learning_rate,
        second_factor=settings.lora_plus_ratio,
        **settings.learning_rates.model_dump(),
    )
    state = TrainingState(
        adapter=factors,
        optimizer=optimizers.OPTIMIZERS[settings.optimizer](groups, settings.learning_rate, settings.weight_decay),
        average=Average(factors.state(), settings.ema.decay) if settings.ema else None,
    )
    plan = Plan(
        steps=settings.steps,
        rate_of=lambda step: rate_at(
            step,
            schedule=settings.schedule,
            learning_rate=settings.learning_rate,
            steps=settings.steps,
            warmup=settings.warmup,
            power=settings.power,
            cycles=settings.cycles,
        ),
        losses_of=lambda step: map(losses_of, batches(step)),
        names_of=batches.names,
        seed=settings.seed,
        clip=settings.clip,
        processes=processes,
        rising_loss=settings.rising_loss,
        nothing_of=nothing_of(batches, objective),
    )
    return plan, state, factors


def silent(done: int, total: int, unit: str, **figures: float) -> None:
    """Nobody listens."""


def run(folder: Path, settings: Train, progress: Progress = silent, *, processes: Processes = ALONE) -> TrainingState:
    """Train to the end, from what checkpoints there are."""
    plan, state, _ = begin(settings, processes)
    checkpoints = SharedCheckpoints(
        processes=processes, folder=folder, identity="toy", every=settings.checkpoint_every, warn=print
    )
    train(plan, state, checkpoints, progress)
    return state
