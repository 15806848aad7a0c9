"""What recipes can say about DreamBooth."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from sdbuild.methods.spec import ClassPictures, KeptPrediction, Prior, Usual, WeightsSpec


class Dreambooth(WeightsSpec):
    """DreamBooth (Ruiz et al., 2023): a full fine-tune on few pictures of a subject, named by a rare word."""

    usual: ClassVar[Usual] = replace(WeightsSpec.usual, views=(80, 400))
    """Ruiz et al.: 1,000 steps on three to five pictures; diffusers' example: 400 on five."""

    kind: Literal["dreambooth"] = "dreambooth"
    prior: Prior | None = None
    """How the subject's class is preserved, which few pictures would overwrite; null for not at all."""

    @property
    def preserved(self) -> ClassPictures | KeptPrediction | None:
        """The section `prior`."""
        return self.prior


SPEC = Dreambooth
