"""The train step: an adapter from latents, texts and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sdbuild import families
from sdbuild.data.items import ShardReader
from sdbuild.data.records import count_skipped, read_captions
from sdbuild.errors import DataError, Problem, RecipeError, StepError
from sdbuild.families.contract import PredictionType, Schedule
from sdbuild.methods.contract import Adapter, Staged
from sdbuild.methods.precision_loss import precision_loss_of
from sdbuild.methods.spec import MethodSpec
from sdbuild.recipe.libraries import tracker_missing
from sdbuild.recipe.methods import method_of
from sdbuild.recipe.models import Train
from sdbuild.steps import fit, results
from sdbuild.steps.contract import Context, Inputs, Items
from sdbuild.steps.largest import largest_of
from sdbuild.steps.model import Model, assemble, precision_of
from sdbuild.steps.preservation import as_the_base, class_pictures, records_of
from sdbuild.steps.results import Data
from sdbuild.steps.shortage import memory_told
from sdbuild.storage.text_cleaning import says
from sdbuild.training import metadata, optimizers, timesteps
from sdbuild.training.along import Along
from sdbuild.training.compiling import compile_networks
from sdbuild.training.ema import Average
from sdbuild.training.examples import Batch, Batches, Cache, Conditions, EmptyAsZeros, Encoded, Stored
from sdbuild.training.guard import nothing_of
from sdbuild.training.inputs import data_digest, places_of, read_examples, read_texts, sampler_of
from sdbuild.training.loop import Plan, train
from sdbuild.training.machine import forget_peak, given_back, peak
from sdbuild.training.noise import Colour
from sdbuild.training.objective import Objective
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.parallel import Processes, SharedCheckpoints, join
from sdbuild.training.precision import Precision
from sdbuild.training.schedules import rate_at
from sdbuild.training.state import TrainingState
from sdbuild.training.trackers import Trackers
from sdbuild.training.validation import Validation
from sdbuild.training.watch import Watch

NAMES: Mapping[PredictionType, str] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow": "flow"}
"""What is predicted, as recipes call it."""

IDLE = frozenset({"rising_loss", "checkpoint_every", "save_every", "save_most", "gradient_checkpointing"})
"""Settings that say when to give up, when to save and what to keep in memory.

Whether adapters that are wanted on the way are there is looked at by itself; see `Along.whole`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Looking:
    """What can be done with the adapter as it is, on the way."""

    measure: Callable[[Callable[[], None]], float]
    """See `Watch.measure`."""
    write: Callable[[Path, int], None]
    """See `Along.write`."""
    trackers: Trackers
    """Who is told."""


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Train, and write `adapter/`, `metrics.json` and `loss.csv`."""
    assert inputs.captions is not None
    assert inputs.latents is not None
    assert inputs.base is not None
    settings = Train.model_validate(spec["train"])
    processes = join()
    device = processes.device
    method = method_of(spec["method"])
    precision = precision_of(method, compute=settings.precision, base=settings.base_precision)
    optimizers.check(settings.optimizer, device)
    precision.check(device)
    data = read_data(spec, inputs, method)
    _need_words(method.words, data)
    sampler = sampler_of(
        data.examples, spec["datasets"], batch=settings.batch * settings.accumulate, seed=settings.seed
    )
    family = families.load(inputs.base, clip_skip=spec.get("clip_skip", 1))
    _warn_of_small_buckets(sampler.counts, settings, family.vae_factor, context.warn)
    if precision.crawls(device):
        context.warn(f"this processor computes {precision.compute} 10 to 100 times as slowly as float32")
    fit.check(spec, inputs.base, largest_of(sampler.counts, spec["train"]), device, context.warn)
    schedule = family.noise_schedule()
    objective, measured = _objectives(settings, schedule, device)
    if objective.prediction != schedule.prediction_type:
        learned, own = (NAMES[kind] for kind in (objective.prediction, schedule.prediction_type))
        context.warn(f"the base predicts {own} and learns to predict {learned}; samplers must be set to {learned}")
    forget_peak(device)
    with memory_told(spec), _reproducible(device), given_back(device, spec["train"]):
        model = assemble(
            family,
            method,
            seed=settings.seed,
            precision=precision,
            device=device,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        conditions = _conditions(model, data, inputs, settings, device)
        seen: Callable[[Conditions], Conditions] = EmptyAsZeros if family.zeros_for_empty else lambda given: given
        parts: dict[str, Any] = {
            "latent": Cache(read=ShardReader(inputs.latents).read),
            "scale": family.scale,
            "conditions": seen(conditions),
            "timesteps": schedule.timesteps,
            "device": device,
        }
        batches = Batches(
            choose=records_of(method, data, sampler, settings),
            size=settings.batch,
            seed=settings.seed,
            caption_dropout=settings.caption_dropout,
            timestep_of=timesteps.chooser(settings.timesteps.model_dump(), schedule),
            colour=Colour(**settings.noise.model_dump(exclude={"zero_terminal_snr"})),
            share=processes.share,
            base_conditions=seen(as_the_base(conditions, model.adapter)),
            places=places_of(context.previous / "images.jsonl"),
            **parts,
        )
        losses_of = _losses(model, objective, precision, device)
        # A base that is to predict something else may begin worse than a network that predicts nothing.
        nothing = nothing_of(batches, objective) if objective.prediction == schedule.prediction_type else None
        if settings.compile:
            parameters = [parameter for _, parameter in model.adapter.parameters()]
            whole = replace(batches, share=None)  # for a share may be empty
            compile_networks(model.networks, parameters, lambda: losses_of(next(whole(0))).mean(), device)
        hold_out = Validation(examples=data.holdout, draws=settings.validation_draws, batch=settings.batch, **parts)
        plain = _losses(model, measured, precision, device)
        write = partial(results.write_adapter, spec, family, data, model.adapter, objective.prediction)
        looking = Looking(
            measure=lambda look: processes.told(hold_out(plain, look) if processes.first else 0.0),
            write=lambda folder, step: write(folder, step, f"{spec['name']}-{step:06d}"),
            trackers=_trackers(inputs, settings, context, processes),
        )
        scaler = precision.scaler(device)
        state, along = _train(
            spec, settings, data, model.adapter, batches, nothing, losses_of, looking, scaler, processes, context
        )
        if not processes.first:
            return Items(total=state.step, computed=state.computed)
        with state.result():
            validation = results.validate(state, lambda: hold_out(plain)) if data.holdout else None
            write(out / "adapter", results.step_told(settings, state))
            precision_loss = precision_loss_of(model.adapter)
    if along is not None:
        along.finish(out / "adapters", state.step, results.kept_step(settings, state))
    results.write_figures(out, settings, data, state, validation, _rate_of(settings), peak(device), precision_loss)
    results.warn_at_end(context.warn, settings, state, precision_loss)
    return Items(total=state.step, computed=state.computed)


def check(spec: Mapping[str, Any], base: Path) -> None:
    """Refuse what could not be trained on a base, before there is anything to train on.

    Raises:
        RecipeError: settings do not go with what is predicted.
    """
    family = families.load(base, clip_skip=spec.get("clip_skip", 1), weights=False)
    _objectives(Train.model_validate(spec["train"]), family.noise_schedule(), torch.device("cpu"))


def read_data(spec: Mapping[str, Any], inputs: Inputs, method: MethodSpec) -> Data:
    """Read what earlier steps made."""
    assert inputs.captions is not None
    assert inputs.latents is not None
    captions = read_captions(inputs.captions)
    examples, holdout = read_examples(captions, inputs.latents, spec["datasets"])
    if not examples:
        raise DataError("nothing to train on: all pictures are held out; lower `holdout` in the recipe")
    folders = [folder for folder in (inputs.latents, inputs.text) if folder is not None]
    return Data(
        captions=captions,
        examples=examples,
        holdout=holdout,
        class_pictures=class_pictures(method, inputs.latents),
        digest=data_digest(captions, folders),
        skipped=count_skipped(inputs.captions),
    )


def _need_words(words: Sequence[str], data: Data) -> None:
    """Make sure that captions say the words that are to be learned."""
    texts = {text for example in data.examples for text in example.texts}
    if absent := [word for word in words if not any(says(text, word) for text in texts)]:
        message = "no caption has {!r}; add it to a caption, e.g. as a trigger"
        raise RecipeError(Problem(field="method.tokens", message=message.format(word)) for word in absent)


def _conditions(model: Model, data: Data, inputs: Inputs, settings: Train, device: torch.device) -> Stored | Encoded:
    """Return what gives captions as conditions: the text encoder that changes, or else what the text step wrote."""
    if model.text is not None:
        return Encoded(tokenize=model.text.tokenize, condition=model.text.condition, device=device)
    assert inputs.text is not None
    keys = read_texts(inputs.text)
    wanted = {text for example in (*data.examples, *data.holdout, *data.class_pictures) for text in example.texts}
    missing = (wanted | {""} if settings.caption_dropout else wanted) - keys.keys()
    if missing:
        raise StepError(f"no text item for {min(missing)!r}; build the text step again")
    return Stored(item=Cache(read=ShardReader(inputs.text).read), keys=keys, device=device)


def _objectives(settings: Train, schedule: Schedule, device: torch.device) -> tuple[Objective, Objective]:
    """Return the objective to train with, and the plain one to measure with, for any recipe on this base alike.

    Raises:
        RecipeError: settings do not go with what is predicted, which may be known from the base only.
    """
    kinds = {name: kind for kind, name in NAMES.items()}
    prediction = schedule.prediction_type if settings.prediction == "base" else kinds[settings.prediction]
    if rules := list(settings.base_rules(NAMES[schedule.prediction_type])):
        raise RecipeError(Problem(field=f"train.{key}", message=message) for key, message in rules)
    plain: dict[str, Any] = {"prediction": prediction, "zero_terminal_snr": settings.noise.zero_terminal_snr}
    weighting, loss = settings.weighting.model_dump(), settings.loss.model_dump()
    return (
        Objective.of(schedule, device, weighting=weighting, loss=loss, **plain),
        Objective.of(schedule, device, **plain),
    )


def _losses(
    model: Model, objective: Objective, precision: Precision, device: torch.device
) -> Callable[[Batch], Tensor]:
    """Return the function from a batch to its records' losses."""
    dtype = precision.dtype

    def predict(batch: Batch, seen: Mapping[str, Tensor]) -> Tensor:
        with precision.autocast(device):
            noisy = objective.noisy(batch.x, batch.shown, batch.timesteps)
            condition = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in seen.items()
            }
            return model.denoiser.predict(noisy.to(dtype), batch.timesteps, condition)

    def losses_of(batch: Batch) -> Tensor:
        if batch.base_condition is None:
            prediction = predict(batch, batch.condition)
            losses = objective.losses(prediction, batch.x, batch.noise, batch.timesteps, batch.mask)
        else:
            with torch.no_grad(), model.adapter.disabled():
                kept = predict(batch, batch.base_condition)
            losses = (predict(batch, batch.condition).float() - kept.float()).square().mean(dim=(1, 2, 3))
        return losses if batch.weights is None else losses * batch.weights

    return losses_of


def _train(
    spec: Mapping[str, Any],
    settings: Train,
    data: Data,
    adapter: Adapter,
    batches: Batches,
    nothing: Callable[[int], float] | None,
    losses_of: Callable[[Batch], Tensor],
    looking: Looking,
    scaler: GradScaler,
    processes: Processes,
    context: Context,
) -> tuple[TrainingState, Along | None]:
    groups = optimizers.group(
        adapter.parameters(),
        learning_rate=settings.learning_rate,
        second_factor=settings.lora_plus_ratio,
        **settings.learning_rates.model_dump(),
    )
    state = TrainingState(
        adapter=adapter,
        optimizer=OPTIMIZERS[settings.optimizer](groups, settings.learning_rate, settings.weight_decay),
        average=Average(adapter.state(), settings.ema.decay) if settings.ema else None,
        scaler=scaler,
    )

    def losses_at(step: int) -> Iterator[Tensor]:
        if isinstance(adapter, Staged):
            adapter.begin(step, settings.steps)
        return map(losses_of, batches(step))

    identity = metadata.canonical_digest([_deciding(spec), data.digest])
    watch = along = None
    if settings.validate_every:
        patience = settings.early_stop.patience if settings.early_stop else None
        watch = Watch(every=settings.validate_every, steps=settings.steps, patience=patience, measure=looking.measure)
    if settings.save_every and processes.first:
        along = Along(
            folder=context.scratch / "adapters",
            identity=identity,
            every=settings.save_every,
            most=settings.save_most,
            steps=settings.steps,
            write=looking.write,
        )
    plan = Plan(
        steps=settings.steps,
        rate_of=_rate_of(settings),
        losses_of=losses_at,
        names_of=batches.names,
        seed=settings.seed,
        clip=settings.clip,
        processes=processes,
        rising_loss=settings.rising_loss,
        nothing_of=nothing,
        between=[each for each in (watch, along) if each is not None],
        enough=watch.enough if watch else lambda state: False,
        tell=looking.trackers,
    )
    checkpoints = SharedCheckpoints(
        processes=processes,
        folder=context.scratch,
        identity=identity,
        every=settings.checkpoint_every,
        warn=context.warn,
        beside=along,
    )
    adapter.train(True)
    if isinstance(adapter, Staged):
        state.optimizer.register_step_post_hook(lambda *_: adapter.stepped())
    with looking.trackers.run(f"{spec['name']}-{identity[:8]}"):
        train(plan, state, checkpoints, context.progress)
    adapter.train(False)
    return state, along


def _deciding(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out of a spec what changes no step, so that a training that was stopped goes on with other limits."""
    return {**spec, "train": {key: value for key, value in spec["train"].items() if key not in IDLE}}


def _trackers(inputs: Inputs, settings: Train, context: Context, processes: Processes) -> Trackers:
    """Return those that are installed, which the first process tells, and warn of the others."""
    names = inputs.how.get("trackers", ()) if processes.first else ()
    lacking = {name: tracker_missing(name) for name in names}
    for word in filter(None, lacking.values()):
        context.warn(word)
    present = [name for name, word in lacking.items() if word is None]
    return Trackers(present, inputs.trackers, _rate_of(settings), context.warn)


def _rate_of(settings: Train) -> Callable[[int], float]:
    return lambda step: rate_at(
        step,
        schedule=settings.schedule,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup,
        power=settings.power,
        cycles=settings.cycles,
    )


def _warn_of_small_buckets(
    counts: Mapping[Any, float], settings: Train, factor: int, warn: Callable[[str], None]
) -> None:
    batch = settings.batch * settings.accumulate
    setting = f"train.batch {settings.batch}" + (f" x {settings.accumulate}" if settings.accumulate > 1 else "")
    small = {shape: count for shape, count in counts.items() if count < batch}
    if small:
        shape = min(small, key=lambda shape: (small[shape], shape))
        least = f"{shape[-1] * factor}×{shape[-2] * factor} with {small[shape]:.3g}"
        what = f"{len(small)} of {len(counts)} buckets have" if len(counts) > 1 else "the data has"
        warn(f"{what} fewer pictures in a pass than {setting} ({least}); batches there hold a picture several times")


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on the CPU, where they cost nothing, and leave global generators as they were."""
    memory: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.use_deterministic_algorithms(device.type == "cpu")
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = fill
