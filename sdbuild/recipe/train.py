"""The section `train`: optimizer, schedule, objective and all else that decides what an adapter becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from sdbuild.recipe.spec import Choice, Seed, Spec

Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "trackio", "swanlab"]
Rate = Annotated[float, Field(ge=1e-10, le=10)]


class LearningRates(Spec):
    """Learning rates of parts of the base, where they differ."""

    denoiser: Rate | None = None
    """Highest learning rate in the UNet or transformer; null for `learning_rate`."""
    text_encoder: Rate | None = None
    """Highest learning rate in the text encoders; null for `learning_rate`."""
    embeddings: Rate | None = None
    """Highest learning rate of new tokens' vectors; null for `learning_rate`."""


class Ema(Spec):
    """An exponential moving average of the adapter's weights; it is the average that is kept."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of the average that stays in each step; the first steps keep less, (1 + n) / (10 + n) after n of them."""


class EarlyStop(Spec):
    """Ends a training when its validation loss no longer falls; the state with the lowest one is what is kept."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Validations without a loss lower than all before, after which training ends."""


class SquaredError(Spec):
    """Squared error."""

    kind: Literal["l2"] = "l2"


class _Robust(Spec):
    delta: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Error from which the loss grows linearly, where it is smallest."""
    schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How delta depends on the timestep: not at all, or falling from 1 with the timestep or with the share of noise."""


class Huber(_Robust):
    """Pseudo-Huber loss (Khrapov et al., 2024): like the squared error for small errors, linear for outliers."""

    kind: Literal["huber"] = "huber"


class SmoothL1(_Robust):
    """The Huber loss divided by delta: its slope for outliers is the same at all timesteps."""

    kind: Literal["smooth-l1"] = "smooth-l1"


Loss = Annotated[SquaredError | Huber | SmoothL1, Field(discriminator="kind")]


class EqualWeights(Spec):
    """Every timestep alike."""

    kind: Literal["uniform"] = "uniform"


class MinSnr(Spec):
    """Min-SNR-γ (Hang et al., 2023): timesteps with little noise weigh less."""

    kind: Literal["min-snr"] = "min-snr"
    gamma: Annotated[float, Field(ge=0.001, le=100_000)] = 5.0
    """Signal-to-noise ratio from which timesteps weigh less."""


class Debiased(Spec):
    """Debiased estimation (Yu et al., 2024): timesteps with much noise weigh more."""

    kind: Literal["debiased"] = "debiased"


Weighting = Annotated[EqualWeights | MinSnr | Debiased, Field(discriminator="kind")]


class _Timesteps(Spec):
    shift: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Above 1 moves timesteps towards noise (Esser et al., 2024); large pictures want more."""
    low: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Lowest timestep, as a share of all: 0 is the picture."""
    high: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Highest timestep, as a share of all: 1 is noise."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """The range holds something."""
        if self.low >= self.high:
            yield "low", f"{self.low:g} is not less than high {self.high:g}; widen the range"


class BaseTimesteps(Spec):
    """As the base was trained."""

    kind: Literal["base"] = "base"


class UniformTimesteps(_Timesteps):
    """Every timestep as often."""

    kind: Literal["uniform"] = "uniform"


class LogitNormal(_Timesteps):
    """A bell around the middle (Esser et al., 2024); with mean 0 also called sigmoid."""

    kind: Literal["logit-normal"] = "logit-normal"
    mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Mean of the timestep's logit; above 0 moves it towards noise."""
    std: Annotated[float, Field(ge=0.001, le=10)] = 1.0
    """Standard deviation of the timestep's logit."""


class Mode(_Timesteps):
    """More in the middle, or at the ends, but all timesteps (Esser et al., 2024)."""

    kind: Literal["mode"] = "mode"
    scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """Above 0 prefers the middle, below 0 the ends."""


class CosMap(_Timesteps):
    """The cosine schedule's distribution of noise, for flow (Esser et al., 2024)."""

    kind: Literal["cosmap"] = "cosmap"


Timesteps = Annotated[BaseTimesteps | UniformTimesteps | LogitNormal | Mode | CosMap, Field(discriminator="kind")]


class Noise(Spec):
    """The noise that pictures are mixed with."""

    offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Noise added to whole channels, so that very dark and very bright pictures can be learned; 0.05 is usual."""
    pyramid: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share by which each coarser layer of added noise is weaker than the one before; 0 for none."""
    pyramid_levels: Annotated[int, Field(ge=1, le=10)] = 6
    """Layers of pyramid noise, at most."""
    perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Extra noise in what the denoiser sees but need not predict (Ning et al., 2023); 0.1 is usual."""
    zero_terminal_snr: bool = False
    """Whether the last timestep is noise alone (Lin et al., 2023); the sampler must do the same."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """One way to make coarse noise."""
        if self.offset and self.pyramid:
            yield "pyramid", "does with many sizes what offset does with one; keep one of them"


class Train(Spec):
    """The training of the adapter."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Number of optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Pictures at a time."""
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Batches a step: the result of a batch so many times as large, in the memory of one."""
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that share the pictures of each step, one a GPU where there are any: the same training, sooner."""
    learning_rate: Rate = Field(default_factory=lambda: 1e-4)
    """Highest learning rate of the schedule. The default is the usual one of method and optimizer."""
    learning_rates: LearningRates = Field(default_factory=LearningRates)
    """Other learning rates for parts of the base."""
    lora_plus_ratio: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Learning rate of LoRA's second factor, B, over that of the first (LoRA+, Hayou et al., 2024); 16 is usual."""
    optimizer: Literal[
        "adamw",
        "adamw-8bit",
        "adamw-paged",
        "adamw-8bit-paged",
        "lion-8bit",
        "lion-8bit-paged",
        "adafactor",
        "prodigy",
        "adamw-schedule-free",
        "came",
        "sgd",
    ] = "adamw"
    """What turns gradients into steps; all but `adamw`, `adafactor` and `sgd` need the extra `optimizers`."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Decoupled weight decay, a share of the learning rate."""
    schedule: Literal["constant", "cosine", "linear", "polynomial", "restarts"] = "constant"
    """How the learning rate goes on after the warmup: stays, or falls to zero at the last step (or several times)."""
    power: Annotated[float, Field(ge=0.01, le=100)] = 2.0
    """Of the polynomial schedule: how steeply it falls at first."""
    cycles: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of the schedule with restarts: how often it falls from the highest rate to zero."""
    warmup: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps in which the learning rate rises from zero."""
    prediction: Literal["base", "epsilon", "v", "x0", "flow"] = "base"
    """What the denoiser learns to predict: as the base does, or noise, velocity, picture, or the way between them."""
    loss: Loss = Field(default_factory=SquaredError)
    """Measure of the error."""
    weighting: Weighting = Field(default_factory=EqualWeights)
    """How much each timestep counts."""
    timesteps: Timesteps = Field(default_factory=BaseTimesteps)
    """How often each timestep is seen."""
    noise: Noise = Field(default_factory=Noise)
    """The noise that pictures are mixed with."""
    ema: Ema | None = None
    """Average of the adapter over the steps, which is then what is kept; null for the last step's weights."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's computations; the adapter itself is trained in float32 in any case."""
    base_precision: Literal["float32", "bfloat16", "float16", "int8", "nf4"] | None = None
    """What the base's weights are held in; null for `precision`. `int8` and `nf4` need the extra `optimizers`."""
    gradient_checkpointing: bool = False
    """Whether activations are computed twice instead of kept: the same adapter in less memory, a third more slowly."""
    compile: bool = False
    """Whether networks are compiled (torch.compile): a slow start, then quicker steps on most GPUs."""
    seed: Seed = 0
    """Decides the adapter's start, and the order, noise and timesteps of all steps."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of records that are seen without their caption, which guidance profits from."""
    clip: Annotated[float, Field(ge=1e-6, le=1_000_000)] | None = 1.0
    """Largest norm of the gradient; null for no limit."""
    rising_loss: Annotated[float, Field(gt=1, le=1_000_000)] | None = 3.0
    """How many times the loss of the first 100 steps, or of predicting nothing, stops a training; null for never."""
    checkpoint_every: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Steps between checkpoints, from which a killed training goes on."""
    validation_draws: Annotated[int, Field(ge=1, le=1024)] = Field(default=4, alias="validate")
    """Draws of noise and timestep for each held-out record when the validation loss is measured."""

    validate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Steps between validations while it trains, a row of `validation.csv` each; null for one at the end alone."""
    early_stop: EarlyStop | None = None
    """When to end before the last step, and to keep the best state instead of the last; null for never."""
    save_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Steps between adapters that are kept on the way, in `adapters/`; null for none."""
    save_most: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Most adapters kept on the way: when there are more, every second one is dropped; null for no limit."""

    trackers: Choice[Tracker] = ()
    """Who is told losses and learning rates while it trains; no result depends on it."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what does not go together."""
        yield from self._schedule_rules()
        yield from self._optimizer_rules()
        yield from self._looking_rules()
        yield from self.prediction_rules(self.prediction)
        if self.base_precision in ("bfloat16", "float16") and self.base_precision != self.precision:
            yield (
                "base_precision",
                f"{self.base_precision} cannot hold a base that is computed in {self.precision}; "
                f"set precision: {self.base_precision}, or hold it in float32, int8 or nf4",
            )

    def base_rules(self, predicts: str) -> Iterator[tuple[str, str]]:
        """Yield what does not go with a base that predicts this, as recipes call it."""
        yield from self.prediction_rules(predicts if self.prediction == "base" else self.prediction)
        if predicts == "flow" and self.prediction not in ("base", "flow"):
            yield "prediction", "this base is a flow and predicts nothing else; remove it"

    def prediction_rules(self, prediction: str) -> Iterator[tuple[str, str]]:
        """Yield what does not go with a prediction, which only the base decides where the recipe says `base`."""
        if prediction == "flow" and self.weighting.kind != "uniform":
            yield (
                "weighting",
                f"{self.weighting.kind} is defined by noise schedules that flow does not have; "
                "remove it and choose timesteps instead, such as {kind: logit-normal}",
            )
        if self.noise.zero_terminal_snr and prediction == "epsilon":
            yield (
                "noise.zero_terminal_snr",
                "needs a denoiser that predicts v or x0, for noise alone tells nothing when noise is what it predicts; "
                "remove it or set prediction: v",
            )
        if self.noise.zero_terminal_snr and prediction == "flow":
            yield "noise.zero_terminal_snr", "flow ends in noise alone by itself; remove it"

    def _looking_rules(self) -> Iterator[tuple[str, str]]:
        if self.validate_every is not None and self.validate_every > self.steps:
            yield "validate_every", f"{self.validate_every} is more than steps {self.steps}; lower it or remove it"
        if self.early_stop is not None and self.validate_every is None:
            yield "early_stop", "looks at validations on the way; set validate_every too"
        if self.save_every is not None and self.save_every >= self.steps:
            yield "save_every", f"{self.save_every} is not less than steps {self.steps}, whose adapter is kept anyway"
        if self.save_most is not None and self.save_every is None:
            yield "save_most", "no adapters are kept on the way; set save_every too"

    def _schedule_rules(self) -> Iterator[tuple[str, str]]:
        if self.warmup >= self.steps:
            yield "warmup", f"{self.warmup} is not less than steps {self.steps}; shorten it or train longer"
        if self.schedule == "restarts" and self.cycles == 1:
            yield "cycles", "must be at least 2 for schedule restarts; one fall is schedule cosine"
        left = self.steps - self.warmup
        if self.schedule == "restarts" and left >= 1 and self.cycles > max(1, left // 2):
            yield "cycles", f"{self.cycles} falls do not fit into {left} steps, for each takes at least two; lower it"
        if self.schedule != "restarts" and self.cycles != 1:
            yield "cycles", f"schedule {self.schedule} has none; remove it or set schedule: restarts"
        if self.schedule != "polynomial" and self.power != 2.0:
            yield "power", f"schedule {self.schedule} has none; remove it or set schedule: polynomial"

    def _optimizer_rules(self) -> Iterator[tuple[str, str]]:
        if self.learning_rate * self.weight_decay >= 1 and self.optimizer != "prodigy":
            message = f"{self.weight_decay:g} times learning_rate {self.learning_rate:g} is 1 or more"
            yield "weight_decay", f"{message}, which erases the weights; 0.01 is usual"
        if self.optimizer == "prodigy":
            if self.learning_rate < 0.1:
                yield "learning_rate", f"prodigy finds the rate itself and takes {self.learning_rate:g} times it; set 1"
            if self.learning_rates != LearningRates():
                yield "learning_rates", "prodigy finds one rate for all parts; remove them or choose another optimizer"
            if self.lora_plus_ratio != 1:
                yield "lora_plus_ratio", "prodigy finds one rate for all parts; remove it or choose another optimizer"
        if self.optimizer == "adamw-schedule-free":
            if self.schedule != "constant":
                yield "schedule", f"adamw-schedule-free takes the place of {self.schedule}; remove it"
            if self.ema is not None:
                yield "ema", "adamw-schedule-free averages the weights by itself; remove it"


def deciding(train: Mapping[str, Any]) -> dict[str, Any]:
    """What of a section `train` as JSON decides about the adapter: all but what only looks on while it trains."""
    looking = {"save_every", "save_most", *(() if train.get("early_stop") else ("validate_every",))}
    return {key: value for key, value in train.items() if key not in looking}
