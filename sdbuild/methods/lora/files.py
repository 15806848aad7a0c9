"""Names of a LoRA's file for diffusers."""

from __future__ import annotations

from sdbuild.families.contract import KeyMap
from sdbuild.methods.layered import Place

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


def named(place: Place, key_map: KeyMap) -> str:
    """Component and path as files have them, text encoders with the part that recent transformers leave out."""
    component, path = key_map.path(key_map.kohya(*place))
    assert component == place[0]
    return f"{component}.{path}"
