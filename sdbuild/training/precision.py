"""What networks compute in and what the base's weights are held in: number formats, loss scaling.

The adapter is float32 in any case. Quantised weights are those of the linear layers in the base's blocks; convolutions,
norms and embeddings stay in the format that is computed in.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sdbuild.errors import StepError
from sdbuild.families.contract import DTYPES
from sdbuild.training.outline import BYTES, Quantised

Loaded = TypeVar("Loaded")

OUTLIER = 6.0
"""Inputs above it are multiplied in their own format, not in int8 (Dettmers et al. 2022, section 3.2)."""


def _int8(layer: nn.Linear, compute: torch.dtype) -> nn.Linear:
    """LLM.int8() (Dettmers et al. 2022)."""
    from bitsandbytes.nn import Int8Params

    held: nn.Linear = _linear_8bit()(*_shape(layer), has_fp16_weights=False, threshold=OUTLIER, device="meta")
    held.weight = Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return held


@functools.cache
def _linear_8bit() -> Any:
    """The layer of bitsandbytes, but for a slip that others make it take."""
    from bitsandbytes.nn import Linear8bitLt

    class Linear(Linear8bitLt):  # type: ignore[misc]
        def init_8bit_state(self) -> None:
            """Take weight and scales over from the parameter, once.

            On processors PEFT moves the parameter each time it dequantises it, which leaves the weight there anew, but
            not the scales.
            """
            if self.weight.SCB is None:
                self.weight.CB = None
            else:
                super().init_8bit_state()

    return Linear


def _nf4(layer: nn.Linear, compute: torch.dtype) -> nn.Linear:
    """4-bit normal floats with their scales quantised once more (Dettmers et al. 2023, section 3)."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    held: nn.Linear = Linear4bit(*_shape(layer), compute_dtype=compute, quant_type="nf4", device="meta")
    # On processors with AVX512-BF16 the first validation would pack the weights in another order and round their
    # scales: the training would go on with another base, and layers narrower than 64 end in an error.
    held.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    held.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    # Processors with AVX512-BF16 would rewrite the weights at the first look without a gradient, for good: then there
    # are no gradients any more, what is read of the weights is wrong, and widths other than multiples of 64 fail.
    vars(held)["support_avx512bf16_for_cpu"] = False
    return held


QUANTISED: Mapping[str, Callable[[nn.Linear, torch.dtype], nn.Linear]] = {"int8": _int8, "nf4": _nf4}
"""By the recipe's `train.base_precision`: a layer whose weights are quantised when it is moved to a device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Number formats of a training, by the names that recipes use."""

    compute: str
    """Of the networks' computations."""
    base: str | None = None
    """What the base is held in; None for `compute`."""

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in."""
        return DTYPES[self.compute]

    @property
    def quantises(self) -> bool:
        """Whether the base's weights have to be quantised after they are loaded."""
        return self.base in QUANTISED

    @property
    def held(self) -> torch.dtype:
        """What weights that are not quantised are held in."""
        return self.dtype if self.base is None or self.quantises else DTYPES[self.base]

    def crawls(self, device: torch.device) -> bool:
        """Whether computing in it takes 10 to 100 times as long as in float32.

        x86 processors before AVX-512 have no kernels for convolutions in half formats.
        """
        slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        return slow and self.dtype != torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Compute in this format within."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self, device: torch.device) -> GradScaler:
        """Scale losses so that float16's gradients do not vanish (Micikevicius et al. 2018); else do nothing."""
        return GradScaler(device.type, enabled=self.dtype == torch.float16)

    def load(self, loader: Callable[[torch.dtype, str], Loaded], device: torch.device) -> Loaded:
        """Load networks where `settle` wants them: those to be quantised in the main memory."""
        return loader(self.held, "cpu" if self.quantises and device.type != "meta" else str(device))

    def settle(self, networks: Iterable[nn.Module], device: torch.device) -> None:
        """Quantise what is to be, layer by layer, and move everything to the device; `meta` gets outlines."""
        for network in networks if self.quantises else ():
            for path, layer in quantisable(network):
                if device.type == "meta":
                    held: nn.Linear = Quantised(layer, BYTES[str(self.base)](layer))
                else:
                    held = QUANTISED[str(self.base)](layer, self.dtype)
                    held.bias = layer.bias
                parent, _, name = path.rpartition(".")
                setattr(network.get_submodule(parent), name, held.to(device).eval())
            network.to(device)

    def check(self, device: torch.device) -> None:
        """Try a layer, so that a format that cannot run here is said before anything is loaded.

        Raises:
            StepError: its library is missing, or has no kernels for this machine.
        """
        if not self.quantises:
            return
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a word on each type that it casts from
        trial = nn.ModuleDict({"0": nn.Linear(64, 64, dtype=self.dtype).requires_grad_(False)})
        seen = torch.zeros(1, 64, dtype=self.dtype, device=device, requires_grad=True)
        try:
            self.settle([trial], device)
            trial["0"](seen).sum().backward()
        except ImportError as error:
            raise StepError(
                f"train.base_precision {self.base} needs bitsandbytes, which cannot be loaded: "
                f'pip install "sdbuild[optimizers]", or use {self.compute}'
            ) from error
        except (RuntimeError, AttributeError, NotImplementedError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise StepError(
                f"train.base_precision {self.base} cannot run on this machine ({reason}); use {self.compute}"
            ) from error


def expected(norm: Tensor, scaler: GradScaler) -> Tensor:
    """Return a gradient's norm as 0 where the scaler has skipped its step, which then was too large for float16 alone.

    It is left as it is, not finite, when gradients overflow without being scaled up.
    """
    if not scaler.is_enabled() or scaler.get_scale() < 1:
        return norm
    return norm.nan_to_num(nan=0.0, posinf=0.0)


def quantisable(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the layers whose weights can be quantised: linear ones in numbered blocks, by path."""
    for path, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and re.search(r"(^|\.)\d+(\.|$)", path):
            yield path, layer


def checkpoint_gradients(networks: Iterable[nn.Module]) -> None:
    """Keep only the inputs of blocks for the backward pass, and compute the rest again (Chen et al. 2016)."""
    for network in networks:
        found: Any = network
        if hasattr(found, "enable_gradient_checkpointing"):  # diffusers
            found.enable_gradient_checkpointing()
            continue
        enable = getattr(found, "activation_checkpointing_enable", None) or found.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for layer in network.modules():
            if hasattr(layer, "gradient_checkpointing"):
                layer.training = True  # what transformers asks; its children, with their dropout, stay as they are


def _shape(layer: nn.Linear) -> tuple[int, int, bool]:
    return layer.in_features, layer.out_features, layer.bias is not None
