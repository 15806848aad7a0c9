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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

HALF = {
    F: ("linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention"),
    torch: ("matmul", "bmm", "baddbmm", "einsum"),
}
"""Functions that autocast runs in the lower type; of those that networks call, the ones that matter."""
FULL = {F: ("layer_norm", "group_norm", "softmax")}
"""Functions that autocast runs in float32 on GPUs."""

MAPPED = 32 << 20
"""Bytes from which glibc gives back every block as soon as it is free (DEFAULT_MMAP_THRESHOLD_MAX)."""

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """What a step took at the moment when it took most, in bytes."""

    tensors: int = 0
    """All tensors but gradients and those that were there before."""
    gradients: int = 0
    """Gradients of the parameters."""
    kernels: int = 0
    """What the operation of this moment took for itself."""
    small: int = 0
    """Of tensors and gradients, those below `MAPPED`."""


def trace(step: Callable[[], None], live: Live, trained: Iterable[Tensor]) -> Traced:
    """Run a step and watch memory.

    Args:
        step: forward and backward pass, on tensors of the device `meta`.
        live: watches; what it knows is there before.
        trained: parameters whose gradients are told apart.
    """
    live.restart()
    watched: list[Any] = list(trained)
    hooks = [parameter.register_post_accumulate_grad_hook(live.arrived) for parameter in watched]
    try:
        with live:
            step()
    finally:
        for hook in hooks:
            hook.remove()
    return live.most


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of all tensors that operations return, until they are freed."""

    unfolds = False
    """Whether convolutions in half formats write out all patches of their input (im2col), as they do on processors
    without instructions for these formats."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self.restart()

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that others have made."""
        for tensor in tensors:
            self._note(tensor.untyped_storage())

    def restart(self) -> None:
        """Begin again; tensors that are known by now count as nothing."""
        self.alive = self._gradients = self._small = 0
        self.most = Traced()
        self._sizes = dict.fromkeys(self._sizes, 0)
        self._arrived: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        self._look(self._kernel(func, args))
        return made

    def arrived(self, parameter: Tensor) -> None:
        """Tell a gradient from other tensors."""
        if parameter.grad is not None and id(parameter) not in self._arrived:
            self._arrived.add(id(parameter))
            self._gradients += parameter.grad.untyped_storage().nbytes()

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = size = storage.nbytes()
            self.alive += size
            self._small += size if size < MAPPED else 0
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        size = self._sizes.pop(key, 0)
        self.alive -= size
        self._small -= size if size < MAPPED else 0

    def _look(self, kernel: int) -> None:
        if self.alive + kernel > self.most.tensors + self.most.gradients + self.most.kernels:
            tensors = self.alive - self._gradients
            self.most = Traced(tensors=tensors, gradients=self._gradients, kernels=kernel, small=self._small)

    def _kernel(self, func: Any, args: Any) -> int:
        """Bytes that an operation takes for itself."""
        if not self.unfolds or func not in _CONVOLUTIONS:
            return 0
        backward = func is _CONVOLUTIONS[1]
        seen, weight = args[1:3] if backward else args[:2]
        if seen.dtype == torch.float32:
            return 0
        places = weight[0, 0].numel()
        return int(seen.untyped_storage().nbytes()) * int(places)


@contextmanager
def elsewhere(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, operations on the device `meta` take types and memory as on another one, under autocast to `dtype`.

    There is no autocast on `meta`, and its attention is the plain one, which keeps all scores. The functions are
    exchanged where networks look them up, since torch's own modes are left in backward passes, where gradient
    checkpointing computes again.
    """
    types: dict[tuple[Any, str], torch.dtype] = {}
    if dtype != torch.float32:
        types = {(owner, name): dtype for owner, names in HALF.items() for name in names}
        if device.type == "cuda":
            types |= {(owner, name): torch.float32 for owner, names in FULL.items() for name in names}
    before = {place: getattr(*place) for place in (*types, _ATTENTION)}
    try:
        for (owner, name), function in before.items():
            if (owner, name) == _ATTENTION:
                function = _frugal(function)
            setattr(owner, name, _cast(function, types[owner, name]) if types else function)
        yield
    finally:
        for (owner, name), function in before.items():
            setattr(owner, name, function)


_ATTENTION = (F, "scaled_dot_product_attention")


def _cast(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def cast(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, Tensor) and each.is_meta for each in args):
            args, kwargs = tree_map_only(Tensor, lambda tensor: _to(tensor, dtype), (args, kwargs))
        return function(*args, **kwargs)

    return cast


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _frugal(function: Callable[..., Any]) -> Callable[..., Any]:
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
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]

    return attention
