"""LoRA files in a diffusers pipeline, read by diffusers itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer


class PipelineLora:
    """A LoRA that diffusers has loaded, perhaps beside others."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.name = name
        self._layers = [layer for layer in _layers(pipeline) if name in layer.scaling]

    def set_strength(self, strength: float) -> None:
        """Scale it; at 0 it is skipped, which leaves the base exactly."""
        for layer in self._layers:
            others = [] if layer.disable_adapters else [name for name in layer.active_adapters if name != self.name]
            layer.set_scale(self.name, strength)
            active = [*others, self.name] if strength else others
            layer.enable_adapters(bool(active))
            if active:
                layer.set_adapter(active)


def load_lora(pipeline: Any, file: Path) -> PipelineLora:
    """Load a LoRA file, in diffusers' names or in kohya's; it is on, beside those loaded before.

    Raises:
        ValueError: the file holds nothing for this pipeline.
    """
    # PEFT makes modules of these names, which must be no words of torch's: no recipe's name is put there.
    loaded = {name for part in pipeline.components.values() for name in getattr(part, "peft_config", ())}
    known = f"adapter_{len(loaded)}"
    before = {id(layer): list(layer.active_adapters) for layer in _layers(pipeline) if not layer.disable_adapters}
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=known, local_files_only=True)
    for layer in _layers(pipeline):
        layer.set_adapter([*before.get(id(layer), ()), *([known] if known in layer.scaling else ())])
    return PipelineLora(pipeline, known)


def _layers(pipeline: Any) -> Iterator[Any]:
    for part in pipeline.components.values():
        if hasattr(part, "modules"):
            yield from (module for module in part.modules() if isinstance(module, LoraLayer))
