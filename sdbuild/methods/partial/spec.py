"""What recipes can say about partial fine-tunes."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.spec import WeightsSpec
from sdbuild.recipe.spec import Distinct, Text


class Partial(WeightsSpec):
    """Partial fine-tune: the weights of the layers that are named change, and what is written is a whole checkpoint."""

    kind: Literal["partial"] = "partial"
    layers: Distinct[Text]
    """Modules whose weights are trained, with all inside them: ends of their paths, with `*` for any letters."""


SPEC = Partial
