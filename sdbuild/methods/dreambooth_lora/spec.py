"""What recipes can say about DreamBooth with LoRA."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.spec import ClassPictures, KeptPrediction, Prior


class DreamboothLora(Lora):
    """DreamBooth (Ruiz et al., 2023) with low-rank adaptation in place of a full fine-tune."""

    kind: Literal["dreambooth_lora"] = "dreambooth_lora"  # type: ignore[assignment]
    prior: Prior | None = None
    """How the subject's class is preserved, which few pictures would overwrite; null for not at all."""

    @property
    def preserved(self) -> ClassPictures | KeptPrediction | None:
        """The section `prior`."""
        return self.prior


SPEC = DreamboothLora
