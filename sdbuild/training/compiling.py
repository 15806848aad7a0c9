"""Networks compiled by torch, once their gradients have been found right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.errors import StepError

TOLERANCE = 0.05
"""Largest difference of the gradients, relative to their norm, that is rounding; half formats differ by some 2 %."""
REMEDY = "install one, or set train.compile: false"


def compile_networks(
    networks: Iterable[nn.Module], parameters: Sequence[Parameter], loss_of: Callable[[], Tensor], device: torch.device
) -> None:
    """Compile forward and backward passes, and compare the gradients with those of before.

    Compilers make mistakes that no loss shows at first. Other shapes are compiled when they come.

    Args:
        networks: with the adapter in them.
        parameters: of the adapter.
        loss_of: the loss of some batch, the same at each call.
        device: that trains.

    Raises:
        StepError: there is no compiler, or what it makes is wrong.
    """
    _need_compiler(device)
    plain = _gradients(parameters, loss_of)
    for network in networks:
        network.compile()
    try:
        compiled = _gradients(parameters, loss_of)
    except RuntimeError as error:  # what torch's compilers raise
        raise StepError(f"train.compile failed ({_first_line(error)}); set compile: false") from error
    apart = float((compiled - plain).norm() / plain.norm())
    if not apart < TOLERANCE:
        raise StepError(
            f"train.compile: the compiled network's gradients are {apart:.0%} off with torch {torch.__version__} on "
            f"this {device.type}; set compile: false"
        )


def _need_compiler(device: torch.device) -> None:
    try:
        if device.type == "cuda":
            importlib.import_module("triton")
        else:
            importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except (ImportError, RuntimeError) as error:
        raise StepError(f"train.compile needs a compiler ({_first_line(error)}); {REMEDY}") from error


def _gradients(parameters: Sequence[Parameter], loss_of: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(0)  # of dropout
    gradients = torch.autograd.grad(loss_of(), parameters, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
