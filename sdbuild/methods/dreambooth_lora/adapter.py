"""LoRA as it is; the prior is a matter of what is trained on."""

from __future__ import annotations

from sdbuild.methods.lora.adapter import METHOD as METHOD
