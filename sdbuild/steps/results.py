"""What a training leaves: adapters with their headers, figures, and which state is the result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.data.records import CaptionRecord
from sdbuild.families.checkpoint import marks
from sdbuild.families.contract import Family, NoiseSchedule, PredictionType
from sdbuild.methods.contract import Adapter, Pickled
from sdbuild.methods.precision_loss import PrecisionLoss
from sdbuild.recipe.methods import method_of
from sdbuild.recipe.models import Train
from sdbuild.recipe.train import deciding
from sdbuild.training import metadata
from sdbuild.training.examples import Example
from sdbuild.training.inputs import pictures
from sdbuild.training.state import TrainingState

NO_SIGNAL = 1e-6
"""Share of signal below which there is none; schedules that keep some keep a thousand times that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is trained on."""

    captions: Sequence[CaptionRecord]
    examples: Sequence[Example]
    holdout: Sequence[Example]
    class_pictures: Sequence[Example]
    """Drawn by the base."""
    digest: str
    skipped: int
    """Pictures that could not be used."""


def write_adapter(
    spec: Mapping[str, Any],
    family: Family,
    data: Data,
    adapter: Adapter,
    prediction_type: PredictionType,
    folder: Path,
    step: int | None,
    name: str | None = None,
) -> None:
    """Write the adapter as it is.

    Args:
        spec: of the train step.
        family: of the base.
        data: that it was trained on.
        adapter: in the base.
        prediction_type: what the denoiser predicts with it.
        folder: a new one.
        step: how many steps it took, where that is not what the recipe says.
        name: where that is not the recipe's.
    """
    shape, _ = Counter(example.shape for example in data.examples).most_common(1)[0]
    resolution = f"{shape[-1] * family.vae_factor}x{shape[-2] * family.vae_factor}"
    name = name or spec["name"]
    made = {**spec, "train": deciding(spec["train"])}
    method = method_of(spec["method"])
    header = {
        "format": "pt",
        **metadata.modelspec(
            family,
            kind=method.modelspec,
            name=name,
            prediction_type=prediction_type,
            resolution=resolution,
        ),
        **metadata.kohya(family, spec, data.examples, data.captions, class_pictures=len(data.class_pictures)),
        **adapter.summary(),
        **metadata.lineage(made, data=data.digest, pictures=pictures(data.examples), holdout=pictures(data.holdout)),
        **({} if step is None else {"ss_steps": str(step), "sdbuild.step": str(step)}),
    }
    files = adapter.export(family.key_map, name)
    if method.trains_base:
        files[f"{name}.safetensors"] |= marks(prediction_type, zero_terminal_snr=_ends_in_noise(spec, family))
    metadata.write_files(folder, files, header)
    if isinstance(adapter, Pickled):
        metadata.write_pickles(folder, adapter.pickled(name))


def _ends_in_noise(spec: Mapping[str, Any], family: Family) -> bool:
    """Whether the last timestep is noise alone, as the base has it or as it was trained."""
    schedule = family.noise_schedule()
    by_itself = isinstance(schedule, NoiseSchedule) and float(schedule.alphas_cumprod[-1]) < NO_SIGNAL
    return by_itself or bool(spec["train"]["noise"]["zero_terminal_snr"])


def validate(state: TrainingState, measure: Callable[[], float]) -> dict[str, float]:
    """Return the losses of base and result; what was found on the way is not measured again."""
    known = state.measured
    if known.base is not None:
        return {"base": known.base, "adapter": (known.lowest if known.best else known.rows[-1])[1]}
    with state.adapter.disabled():
        base = measure()
    return {"base": base, "adapter": measure()}


def kept_step(settings: Train, state: TrainingState) -> int:
    """Return the step whose state is the result."""
    return state.measured.lowest[0] if settings.early_stop else state.step


def step_told(settings: Train, state: TrainingState) -> int | None:
    """Return what the result's header says of its steps; None for what the recipe says."""
    return kept_step(settings, state) if settings.early_stop else None


def warn_at_end(
    warn: Callable[[str], None], settings: Train, state: TrainingState, precision_loss: PrecisionLoss | None
) -> None:
    """Warn where training stopped early, and where half precision changed the weights."""
    if settings.early_stop and state.step < settings.steps:
        warn(why_stopped(settings, state))
    if precision_loss and (said := precision_loss.told()):
        warn(said)


def why_stopped(settings: Train, state: TrainingState) -> str:
    """Say why a training ended early."""
    step, loss = state.measured.lowest
    since = state.measured.since
    count = "1 validation" if since == 1 else f"{since} validations"
    return (
        f"stopped after step {state.step} of {settings.steps}: in {count} the loss did not fall below {loss:.4g}, "
        f"that of step {step}, whose adapter is kept"
    )


def write_figures(
    out: Path,
    settings: Train,
    data: Data,
    state: TrainingState,
    validation: Mapping[str, float] | None,
    rate_of: Callable[[int], float],
    memory: int,
    precision_loss: PrecisionLoss | None = None,
) -> None:
    """Write `metrics.json`, `loss.csv` and, with validation on the way, `validation.csv`."""
    last = state.losses[-max(1, len(state.losses) // 10) :]
    metrics = {
        "train_loss": sum(last) / len(last),
        "validation_loss": validation,
        "steps": state.step,
        "pictures": pictures(data.examples),
        "holdout": pictures(data.holdout),
        "skipped": data.skipped,
        "seconds": round(state.seconds, 3),
        "memory": memory,
    }
    if precision_loss:
        metrics["half_precision"] = precision_loss.figures()
    if data.class_pictures:
        metrics["class_pictures"] = len(data.class_pictures)
    if settings.early_stop:
        metrics |= {"best_step": kept_step(settings, state), "stopped_early": state.step < settings.steps}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    rows = [f"{step + 1},{loss:.8g},{rate_of(step):.8g}" for step, loss in enumerate(state.losses)]
    _write_rows(out / "loss.csv", "step,loss,learning_rate", rows)
    if settings.validate_every:
        rows = [f"{step},{loss:.8g},{state.measured.base:.8g}" for step, loss in state.measured.rows]
        _write_rows(out / "validation.csv", "step,adapter,base", rows)


def _write_rows(path: Path, head: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join((head, *rows, "")), encoding="utf-8", newline="\n")
