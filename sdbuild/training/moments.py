"""What an optimizer remembers between steps, as tensors and JSON-able values, and back without a bit changed.

Libraries' own `state_dict` and `load_state_dict` cast, wrap or leave out what others keep, so the entries are read from
and put where all optimizers have them: `state` by parameter, and `param_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Named = Sequence[tuple[str, Parameter]]

_VALUES = (bool, int, float, str)


def dump(optimizer: Optimizer, named: Named) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, by path, and the other values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    placed: dict[str, str] = {}
    for name, parameter in named:
        for entry, value in optimizer.state.get(parameter, {}).items():
            path = f"state/{name}/{entry}"
            if not isinstance(value, Tensor):
                assert value is None or isinstance(value, _VALUES), path
                values[path] = value
                continue
            tensors[path] = value
            if getattr(value, "is_paged", False):
                placed[path] = "paged"
            elif value.device.type == "cpu" and parameter.device.type != "cpu":
                placed[path] = "host"
    for number, group in enumerate(optimizer.param_groups):
        for entry, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group/{number}/{entry}"] = value
            elif isinstance(value, _VALUES):
                values[f"group/{number}/{entry}"] = value
    return tensors, {"values": values, "placed": placed}


def load(optimizer: Optimizer, named: Named, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """Put back what `dump` returned into a fresh optimizer of the same kind."""
    parameters = dict(named)
    for path, value in [*saved["values"].items(), *tensors.items()]:
        kind, rest = path.split("/", 1)
        owner, entry = rest.rsplit("/", 1)
        if kind == "group":
            group = optimizer.param_groups[int(owner)]
            device = group["params"][0].device
            group[entry] = value.to(device) if isinstance(value, Tensor) else value
            continue
        parameter = parameters[owner]
        placed = saved["placed"].get(path)
        if placed == "paged":
            value = _paged(optimizer, parameter, value)
        elif isinstance(value, Tensor) and placed != "host":
            value = value.to(parameter.device)
        optimizer.state[parameter][entry] = value


def _paged(optimizer: Any, parameter: Parameter, value: Tensor) -> Tensor:
    """Return a tensor in memory that the GPU's driver moves as needed; bitsandbytes gives it out."""
    buffer: Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
    if parameter.is_cuda:
        torch.cuda.synchronize(parameter.device)  # the buffer is cleared by the GPU
    return buffer.copy_(value)
