"""The section `train`: optimizer, schedule, objective and all else that decides what an adapter becomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from sdbuild.recipe.spec import Seed, Spec


class Train(Spec):
    """The training of the adapter."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Number of optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Pictures a step."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Highest learning rate of the schedule."""
    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    """What turns gradients into steps; `adamw-8bit` needs a GPU and the extra `cuda`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, a share of the learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate goes on after the warmup: stays, or falls to zero at the last step."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from zero."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the model's computations; the adapter's weights are float32 in any case."""
    seed: Seed = 0
    """Decides the adapter's start, and the order, noise and timesteps of all steps."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of records that are seen without their caption, which guidance profits from."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null for no limit."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints, from which a killed training goes on."""
    validation_draws: Annotated[int, Field(ge=1, le=1024)] = Field(default=4, alias="validate")
    """Draws of noise and timestep for each held-out record when the validation loss is measured."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """The warmup ends before the training does."""
        if self.warmup >= self.steps:
            yield "warmup", f"{self.warmup} is not less than steps {self.steps}; shorten it or train longer"
