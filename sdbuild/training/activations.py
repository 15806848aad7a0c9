"""What a training step takes besides its networks: the bytes of all tensors that are alive, moment by moment.

The step is run on the device `meta`, where operations have shapes and no numbers. That is exact but for what kernels
take for themselves while they compute.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

HALF = ("linear", "conv2d", "scaled_dot_product_attention")
"""Functions that autocast runs in the lower type; of those that networks call, the ones that matter."""
FULL = ("layer_norm", "group_norm", "rms_norm", "softmax")
"""Functions that autocast runs in float32 on GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """What a step took, in bytes."""

    peak: int
    """Most that was alive at one moment, gradients included."""
    gradients: int
    """Of the parameters, at that moment."""
    largest: int
    """Largest single tensor."""


def trace(step: Callable[[], None], held: Iterable[Tensor], parameters: Iterable[Parameter]) -> Traced:
    """Run a step and watch memory.

    Args:
        step: forward and backward pass, on tensors of the device `meta`.
        held: tensors that are there before; views of them take nothing.
        parameters: whose gradients are counted.
    """
    live = Live(held)
    watched: list[Any] = list(parameters)
    hooks = [parameter.register_post_accumulate_grad_hook(live.arrived) for parameter in watched]
    try:
        with live:
            step()
    finally:
        for hook in hooks:
            hook.remove()
    return Traced(peak=live.peak, gradients=live.gradients_at_peak, largest=live.largest)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of all tensors that operations return, until they are freed."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = self.largest = 0
        self.gradients = self.gradients_at_peak = 0
        self._held = [tensor.untyped_storage() for tensor in held]
        self._sizes: dict[int, int] = {storage._cdata: 0 for storage in self._held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        return made

    def arrived(self, parameter: Tensor) -> None:
        """Count a gradient as one."""
        if parameter.grad is not None:
            self.gradients += parameter.grad.untyped_storage().nbytes()

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size
        weakref.finalize(storage, self._free, key)
        self.bytes += size
        self.largest = max(self.largest, size)
        if self.bytes > self.peak:
            self.peak, self.gradients_at_peak = self.bytes, self.gradients

    def _free(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key, 0)


@contextmanager
def as_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, operations on the device `meta` take types and memory as on another one, under autocast to `dtype`.

    There is no autocast on `meta`, and its attention is the plain one, which keeps all scores.
    """
    changed: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": F.scaled_dot_product_attention}
    if dtype != torch.float32:
        changed = {name: _cast(getattr(F, name), dtype) for name in HALF}
        if device.type == "cuda":
            changed |= {name: _cast(getattr(F, name), torch.float32) for name in FULL}
    changed["scaled_dot_product_attention"] = _frugal(changed["scaled_dot_product_attention"], dtype)
    before = {name: getattr(F, name) for name in changed}
    try:
        vars(F).update(changed)
        yield
    finally:
        vars(F).update(before)


def _cast(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def cast(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(each, Tensor) and each.is_meta for each in args):
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda tensor: _to(tensor, dtype), (args, kwargs))
        return function(*args, **kwargs)

    return cast


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _frugal(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """Attention that keeps one number a row of the scores, as all fused kernels do (Dao et al. 2022)."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> Any:
        if not query.is_meta or others.get("enable_gqa"):
            return function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
        if dtype != torch.float32:
            query, key, value = (_to(each, dtype) for each in (query, key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]

    return attention
