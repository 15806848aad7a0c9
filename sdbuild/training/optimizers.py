"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from sdbuild.errors import StepError

Maker = Callable[[Sequence[Parameter], float, float], Optimizer]
"""Builds an optimizer from parameters, learning rate and weight decay."""


def adamw(parameters: Sequence[Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), in one fused kernel."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def adamw_8bit(parameters: Sequence[Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW with block-wise quantised moments (Dettmers et al. 2022), from bitsandbytes."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise StepError(
            "train.optimizer adamw-8bit needs bitsandbytes: pip install 'sdbuild[cuda]', or use adamw"
        ) from error
    if not parameters[0].is_cuda:
        raise StepError("train.optimizer adamw-8bit needs a GPU; use adamw on this machine")
    optimizer: Optimizer = AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
    return optimizer


def sgd(parameters: Sequence[Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
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
                if decay:
                    torch._foreach_mul_([p for p in group["params"] if p.grad is not None], 1 - group["lr"] * decay)
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


OPTIMIZERS: Mapping[str, Maker] = {"adamw": adamw, "adamw-8bit": adamw_8bit, "sgd": sgd}
"""By the recipe's `train.optimizer`."""


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
