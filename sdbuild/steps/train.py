"""The train step: an adapter from latents, texts and captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from sdbuild import families, methods
from sdbuild.data.items import ShardReader
from sdbuild.data.records import CaptionRecord, count_skipped, read_captions
from sdbuild.data.sampler import Sampler
from sdbuild.errors import DataError, StepError
from sdbuild.families.contract import DTYPES, Denoiser, Family
from sdbuild.methods.contract import Adapter
from sdbuild.recipe.models import Train
from sdbuild.steps.contract import Context, Inputs, Items
from sdbuild.training import metadata
from sdbuild.training.checkpoint import Checkpoints
from sdbuild.training.examples import Batch, Batches, Cache, Conditions, Encoded, Example, Stored
from sdbuild.training.inputs import data_digest, read_examples, read_texts
from sdbuild.training.loop import Plan, train
from sdbuild.training.objective import Objective
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.schedules import rate_at
from sdbuild.training.state import TrainingState
from sdbuild.training.tensorfile import content_digest, write_tensors
from sdbuild.training.validation import Validation


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is trained on."""

    captions: Sequence[CaptionRecord]
    examples: Sequence[Example]
    holdout: Sequence[Example]
    digest: str
    skipped: int
    """Pictures that could not be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The base with a fresh adapter in it."""

    denoiser: Denoiser
    adapter: Adapter
    conditions: Conditions


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Train, and write `adapter/`, `metrics.json` and `loss.csv`."""
    assert inputs.captions is not None
    assert inputs.latents is not None
    assert inputs.base is not None
    settings = Train.model_validate(spec["train"])
    device = PartialState().device
    data = read_data(spec, inputs)
    _warn_of_small_buckets(data.examples, settings.batch, context.warn)
    family = families.load(inputs.base)
    schedule = family.noise_schedule()
    with _reproducible(device):
        model = _model(family, spec, data, inputs, device)
        losses_of = _losses(model, Objective.of(schedule, device), DTYPES[settings.precision], device)
        parts: dict[str, Any] = {
            "latent": Cache(read=ShardReader(inputs.latents).read),
            "scale": family.scale,
            "conditions": model.conditions,
            "timesteps": schedule.timesteps,
            "device": device,
        }
        batches = Batches(
            choose=_order(data.examples, settings),
            seed=settings.seed,
            caption_dropout=settings.caption_dropout,
            **parts,
        )
        state = _train(spec, settings, data, model.adapter, batches, losses_of, context)
        validation = None
        if data.holdout:
            measure = Validation(examples=data.holdout, draws=settings.validation_draws, batch=settings.batch, **parts)
            validation = _validate(measure, model.adapter, losses_of)
    _write_adapter(out / "adapter", spec, family, data, model.adapter)
    _write_figures(out, settings, data, state, validation)
    return Items(total=settings.steps, computed=state.computed)


def read_data(spec: Mapping[str, Any], inputs: Inputs) -> Data:
    """Read what earlier steps made."""
    assert inputs.captions is not None
    assert inputs.latents is not None
    captions = read_captions(inputs.captions)
    examples, holdout = read_examples(captions, inputs.latents, [dataset["repeats"] for dataset in spec["datasets"]])
    if not examples:
        raise DataError("nothing to train on: all pictures are held out; lower `holdout` in the recipe")
    folders = [folder for folder in (inputs.latents, inputs.text) if folder is not None]
    return Data(
        captions=captions,
        examples=examples,
        holdout=holdout,
        digest=data_digest(captions, folders),
        skipped=count_skipped(inputs.captions),
    )


def _model(family: Family, spec: Mapping[str, Any], data: Data, inputs: Inputs, device: torch.device) -> Model:
    settings, method = Train.model_validate(spec["train"]), spec["method"]
    dtype = DTYPES[settings.precision]
    denoiser = family.load_denoiser(dtype, str(device))
    modules: dict[Any, torch.nn.Module] = {denoiser.component: denoiser.module}
    conditions: Conditions
    if method["text_encoder"]:
        text = family.load_text(dtype, str(device))
        modules |= text.modules
        conditions = Encoded(tokenize=text.tokenize, condition=text.condition, device=device)
    else:
        assert inputs.text is not None
        keys = read_texts(inputs.text)
        wanted = {example.text for example in (*data.examples, *data.holdout)}
        missing = (wanted | {""} if settings.caption_dropout else wanted) - keys.keys()
        if missing:
            raise StepError(f"no text item for {min(missing)!r}; build the text step again")
        conditions = Stored(item=Cache(read=ShardReader(inputs.text).read), keys=keys, device=device)
    adapter = methods.load(method["kind"]).inject(modules, method, seed=settings.seed)
    return Model(denoiser=denoiser, adapter=adapter, conditions=conditions)


def _losses(model: Model, objective: Objective, dtype: torch.dtype, device: torch.device) -> Callable[[Batch], Tensor]:
    """Return the function from a batch to its records' losses."""
    predict = model.denoiser.predict
    mixed = dtype != torch.float32

    def losses_of(batch: Batch) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=mixed):
            noisy = objective.noisy(batch.x, batch.noise, batch.timesteps)
            condition = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in batch.condition.items()
            }
            prediction = predict(noisy.to(dtype), batch.timesteps, condition)
        return objective.losses(prediction, batch.x, batch.noise, batch.timesteps)

    return losses_of


def _order(examples: Sequence[Example], settings: Train) -> Callable[[int], list[Example]]:
    sampler = Sampler(
        [example.key for example in examples],
        [example.shape for example in examples],
        batch=settings.batch,
        seed=settings.seed,
        repeats=[example.repeats for example in examples],
    )
    return lambda step: [examples[index] for index in sampler.batch(step)]


def _train(
    spec: Mapping[str, Any],
    settings: Train,
    data: Data,
    adapter: Adapter,
    batches: Batches,
    losses_of: Callable[[Batch], Tensor],
    context: Context,
) -> TrainingState:
    parameters = [parameter for _, parameter in adapter.parameters()]
    state = TrainingState(
        adapter=adapter,
        optimizer=OPTIMIZERS[settings.optimizer](parameters, settings.learning_rate, settings.weight_decay),
    )
    plan = Plan(
        steps=settings.steps,
        rate_of=_rate_of(settings),
        losses_of=lambda step: losses_of(batches(step)),
        names_of=batches.names,
        seed=settings.seed,
        clip=settings.clip,
    )
    checkpoints = Checkpoints(
        folder=context.scratch,
        identity=metadata.canonical_digest([spec, data.digest]),
        every=settings.checkpoint_every,
        warn=context.warn,
    )
    adapter.train(True)
    train(plan, state, checkpoints, context.progress)
    adapter.train(False)
    return state


def _rate_of(settings: Train) -> Callable[[int], float]:
    return lambda step: rate_at(
        step,
        schedule=settings.schedule,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup,
    )


def _validate(measure: Validation, adapter: Adapter, losses_of: Callable[[Batch], Tensor]) -> dict[str, float]:
    with adapter.disabled():
        base = measure(losses_of)
    return {"base": base, "adapter": measure(losses_of)}


def _write_adapter(folder: Path, spec: Mapping[str, Any], family: Family, data: Data, adapter: Adapter) -> None:
    folder.mkdir()
    shape, _ = Counter(example.shape for example in data.examples).most_common(1)[0]
    resolution = f"{shape[-1] * family.vae_factor}x{shape[-2] * family.vae_factor}"
    prediction_type = family.noise_schedule().prediction_type
    header = {
        "format": "pt",
        **metadata.modelspec(family, name=spec["name"], prediction_type=prediction_type, resolution=resolution),
        **metadata.kohya(family, spec, data.examples, data.captions),
        **adapter.summary(),
        **metadata.lineage(spec, data=data.digest, pictures=len(data.examples), holdout=len(data.holdout)),
    }
    for name, tensors in adapter.export(family.key_map, spec["name"]).items():
        digest = {"modelspec.hash_sha256": f"0x{content_digest(tensors)}"}
        write_tensors(folder / name, tensors, header | digest)


def _write_figures(
    out: Path, settings: Train, data: Data, state: TrainingState, validation: Mapping[str, float] | None
) -> None:
    last = state.losses[-max(1, len(state.losses) // 10) :]
    metrics = {
        "train_loss": sum(last) / len(last),
        "validation_loss": validation,
        "steps": state.step,
        "pictures": len(data.examples),
        "holdout": len(data.holdout),
        "skipped": data.skipped,
        "seconds": round(state.seconds, 3),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    rate_of = _rate_of(settings)
    rows = [f"{step + 1},{loss:.8g},{rate_of(step):.8g}\n" for step, loss in enumerate(state.losses)]
    (out / "loss.csv").write_text("step,loss,learning_rate\n" + "".join(rows), encoding="utf-8", newline="\n")


def _warn_of_small_buckets(examples: Sequence[Example], batch: int, warn: Callable[[str], None]) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for example in examples:
        counts[example.shape] += example.repeats
    small = sum(count < batch for count in counts.values())
    if small:
        what = f"{small} of {len(counts)} buckets have" if len(counts) > 1 else "the data has"
        warn(f"{what} fewer pictures than train.batch {batch}; batches are smaller there")


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
