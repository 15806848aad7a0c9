"""Memory that runs out in a training, told with what helps."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sdbuild.errors import StepError, lacks_memory
from sdbuild.methods.spec import Layered, Ranked
from sdbuild.recipe.methods import method_of

LORA = {"kind": "lora"}


@contextmanager
def memory_told(spec: Mapping[str, Any]) -> Iterator[None]:
    """Turn what allocators raise within into one message with the remedies that a train step's spec leaves."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        reason = textwrap.shorten(str(error), 160, placeholder=" …")
        remedies = [f"  {remedy.says}" for remedy in remedies_of(spec)]
        said = f": {reason}" if reason else ""
        raise StepError(f"training ran out of memory{said}", "what helps, from the cheapest on:", *remedies) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """Settings with which a training takes less memory."""

    changes: Mapping[str, Any]
    """In a train step's spec, by dotted key; empty where another step's settings are meant."""
    says: str
    """The settings and what they cost, for people."""


def remedies_of(spec: Mapping[str, Any]) -> Iterator[Remedy]:
    """Yield what takes less memory than a train step's spec: first what leaves the result alone, then what does not."""
    train, method = spec["train"], method_of(spec["method"])
    batch, times = train["batch"], train["accumulate"]

    def remedy(says: str, **changes: Any) -> Remedy:
        return Remedy(changes={key.replace("__", "."): value for key, value in changes.items()}, says=says)

    if not train.get("gradient_checkpointing"):
        yield remedy(
            "train.gradient_checkpointing: true (the same result, a third more slowly)",
            train__gradient_checkpointing=True,
        )
    if batch > 1:
        half = next(part for part in range(batch // 2, 0, -1) if batch % part == 0)
        more = times * batch // half
        yield remedy(
            f"train.batch: {half} with train.accumulate: {more} (the same result in a little more time)",
            train__batch=half,
            train__accumulate=more,
        )
    if train["precision"] == "float32":
        whose = "activations'" if method.trains_base else "base's"
        yield remedy(
            f"train.precision: bfloat16 (half of the {whose} memory, and nearly the same result)",
            train__precision="bfloat16",
        )
    if not method.trains_base and train.get("base_precision") not in ("int8", "nf4"):
        yield remedy(
            "train.base_precision: nf4 (a quarter of the base's memory at best, and about the same result)",
            train__base_precision="nf4",
        )
    if getattr(method, "text_encoder", False):
        yield remedy(
            "method.text_encoder: false (its outputs are then computed once, before the training)",
            method__text_encoder=False,
        )
    if train["optimizer"] == "adamw":
        yield remedy(
            "train.optimizer: adamw-8bit (a quarter of the optimizer's memory, which matters where the rank is high)",
            train__optimizer="adamw-8bit",
        )
    if train["ema"] is not None:
        yield remedy("train.ema: null (one copy of the adapter less)", train__ema=None)
    yield remedy("images.resolution: a smaller one (less detail; latents are made again)")
    if isinstance(method, Layered) and method.targets != "attention":
        smaller = ", or a smaller method.rank" if isinstance(method, Ranked) else ""
        yield remedy(
            f"method.targets: attention{smaller} (an adapter that can learn less)", method__targets="attention"
        )
    elif isinstance(method, Ranked) and method.rank > 1:
        half = method.rank // 2
        yield remedy(f"method.rank: {half} (an adapter that can learn less)", method__rank=half)
    if method.trains_base:
        yield remedy("method: {kind: lora} (an adapter in place of a whole checkpoint)", method=LORA)
