"""Optimizers by name, from kept libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from sdbuild.errors import Problem, RecipeError, StepError

Parameters = Sequence[Parameter] | Sequence[dict[str, Any]]
"""Parameters, or groups of them as `group` makes them."""
Maker = Callable[[Parameters, float, float], Optimizer]
"""Builds an optimizer from parameters, learning rate and weight decay."""

SECOND_FACTOR = ".lora_B.weight"
"""How the names of LoRA's second factors end."""


def adamw(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), in one fused kernel."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def adafactor(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018), from transformers, at the schedule's learning rate.

    Not scaled by the size of the parameters, for LoRA's second factor starts at zero.
    """
    made: Optimizer = _load("transformers.optimization").Adafactor(
        parameters, lr=learning_rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )
    return made


def prodigy(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """Prodigy (Mishchenko and Defazio 2024), set as its authors advise for diffusion models."""
    made: Optimizer = _load("pytorch_optimizer").Prodigy(
        parameters, lr=learning_rate, weight_decay=weight_decay, bias_correction=True, safeguard_warmup=True
    )
    return made


def adamw_schedule_free(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024): the weights to keep are an average that `eval()` brings out."""
    made: Optimizer = _load("pytorch_optimizer").ScheduleFreeAdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay
    )
    return made


def came(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """CAME (Luo et al. 2023): Adafactor's memory, with momentum that trusts steady directions."""
    made: Optimizer = _load("pytorch_optimizer").CAME(parameters, lr=learning_rate, weight_decay=weight_decay)
    return made


def sgd(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent with momentum 0.9; its weight decay is decoupled like AdamW's."""
    return DecoupledSGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)


class DecoupledSGD(torch.optim.SGD):
    """SGD whose weight decay does not pass through the momentum (Loshchilov and Hutter 2019, algorithm 1)."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Decay, then step on the gradient alone."""
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, decay in zip(self.param_groups, decays, strict=True):
                moved = [parameter for parameter in group["params"] if parameter.grad is not None]
                if decay and moved:
                    torch._foreach_mul_(moved, 1 - group["lr"] * decay)
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _bitsandbytes(name: str, *, bits: int, paged: bool) -> Maker:
    """AdamW or Lion (Chen et al. 2023) of bitsandbytes.

    With 8 bits, moments are quantised by blocks (Dettmers et al. 2022). Paged moments move to the main memory when the
    GPU's is full; without a GPU they are there anyway.
    """

    def make(parameters: Parameters, learning_rate: float, weight_decay: float) -> Optimizer:
        made: Optimizer = getattr(_load("bitsandbytes.optim"), name)(
            parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            optim_bits=bits,
            is_paged=paged and _first(parameters).is_cuda,
        )
        return made

    return make


OPTIMIZERS: Mapping[str, Maker] = {
    "adamw": adamw,
    "adamw-8bit": _bitsandbytes("AdamW", bits=8, paged=False),
    "adamw-paged": _bitsandbytes("AdamW", bits=32, paged=True),
    "adamw-8bit-paged": _bitsandbytes("AdamW", bits=8, paged=True),
    "lion-8bit": _bitsandbytes("Lion", bits=8, paged=False),
    "lion-8bit-paged": _bitsandbytes("Lion", bits=8, paged=True),
    "adafactor": adafactor,
    "prodigy": prodigy,
    "adamw-schedule-free": adamw_schedule_free,
    "came": came,
    "sgd": sgd,
}
"""By the recipe's `train.optimizer`."""


def check(name: str, device: torch.device) -> None:
    """Take a step on a few numbers, so that an optimizer that cannot run here is said before anything is loaded.

    Raises:
        StepError: its library is missing, or has no kernels for this machine.
    """
    scratch = Parameter(torch.zeros(64, 64, device=device))  # large enough for 8-bit moments
    scratch.grad = torch.zeros_like(scratch)
    try:
        OPTIMIZERS[name]([scratch], 1.0, 0.0).step()
    except ImportError as error:
        raise StepError(
            f"train.optimizer {name} needs {error.name or 'a library that cannot be loaded'}: "
            'pip install "sdbuild[optimizers]", or use adamw'
        ) from error
    except (RuntimeError, AttributeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StepError(f"train.optimizer {name} cannot run on this machine ({reason}); use adamw") from error


def group(
    named: Sequence[tuple[str, Parameter]],
    *,
    learning_rate: float,
    denoiser: float | None,
    text_encoder: float | None,
    embeddings: float | None = None,
    second_factor: float,
) -> list[dict[str, Any]]:
    """Group parameters by their `share` of the learning rate.

    Args:
        named: as an adapter names them, `<component>.<path>…`.
        learning_rate: of parts without one of their own.
        denoiser: learning rate of UNet or transformer.
        text_encoder: learning rate of the text encoders.
        embeddings: learning rate of vectors of new tokens, which are named `embeddings.<component>`.
        second_factor: times the rate for LoRA's second factors (LoRA+, Hayou et al. 2024, section 3: η_B = λ η_A).

    Raises:
        RecipeError: there is no second factor to take another rate.
    """
    if second_factor != 1 and not any(name.endswith(SECOND_FACTOR) for name, _ in named):
        message = "this method has no second factor; remove it"
        raise RecipeError([Problem(field="train.lora_plus_ratio", message=message)])
    groups: dict[float, list[Parameter]] = {}
    rates = {"text_encoder": text_encoder, "embeddings": embeddings}
    for name, parameter in named:
        rate = rates.get(part_of(name), denoiser)
        share = 1.0 if rate is None else rate / learning_rate
        if name.endswith(SECOND_FACTOR):
            share *= second_factor
        groups.setdefault(share, []).append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in groups.items()]


def part_of(name: str) -> str:
    """The part that a parameter is of, as recipes call those that have learning rates of their own."""
    part = name.partition(".")[0].rstrip("_0123456789")
    return part if part in ("text_encoder", "embeddings") else "denoiser"


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups their share of this learning rate."""
    for each in optimizer.param_groups:
        each["lr"] = rate * each.get("share", 1.0)


def _first(parameters: Parameters) -> Parameter:
    first = parameters[0]
    found: Parameter = first["params"][0] if isinstance(first, dict) else first
    return found


def _load(module: str) -> Any:
    return importlib.import_module(module)
