"""LoRA files in a diffusers pipeline, read by diffusers itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


class PipelineLora:
    """A LoRA that diffusers has loaded."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self._pipeline = pipeline
        self._name = name

    def set_strength(self, strength: float) -> None:
        """Scale it; at 0 its layers are skipped, which leaves the base exactly."""
        if strength == 0:
            self._pipeline.disable_lora()
        else:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters([self._name], [strength])


def load_lora(pipeline: Any, file: Path, name: str) -> PipelineLora:
    """Load a LoRA file, in diffusers' names or in kohya's."""
    known = re.sub(r"\W", "_", name)  # PEFT makes modules of these names
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=known, local_files_only=True)
    return PipelineLora(pipeline, known)
