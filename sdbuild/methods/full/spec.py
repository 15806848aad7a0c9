"""What recipes can say about full fine-tunes."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.spec import WeightsSpec


class Full(WeightsSpec):
    """Full fine-tune: all of the denoiser's own weights change, and what is written is a whole checkpoint."""

    kind: Literal["full"] = "full"


SPEC = Full
