"""What recipes can say about (IA)³."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.spec import Layered, Targets


class Ia3(Layered):
    """(IA)³ (Liu et al., 2022): activations are scaled, a number each; the smallest adapter, with little capacity."""

    kind: Literal["ia3"] = "ia3"
    targets: Targets = "ia3"
    """Modules that adapt: `ia3` (keys, values, inside of feed-forward networks), or one of the others."""


SPEC = Ia3
