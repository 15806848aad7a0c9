"""What recipes can say about GLoRA."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.spec import Ranked


class Glora(Ranked):
    """Generalised LoRA (Chavan et al., 2023): low-rank terms scale and shift weights; prompts act on activations."""

    kind: Literal["glora"] = "glora"
    activations: bool = True
    """Whether layers with a bias also get a prompt, and scale and shift of the bias; not all readers take these."""


SPEC = Glora
