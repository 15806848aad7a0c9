"""What recipes can say about (IA)³."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdbuild.methods.spec import Layered, Targets, Usual


class Ia3(Layered):
    """(IA)³ (Liu et al., 2022): activations are scaled, a number each; the smallest adapter, with little capacity."""

    usual: ClassVar[Usual] = Usual(rate=5e-3, rates=(1e-3, 1e-2))
    """LyCORIS: 5e-3 to 1e-2; Liu et al.: 3e-3."""

    kind: Literal["ia3"] = "ia3"
    targets: Targets = "ia3"
    """Modules that adapt: `ia3` (keys, values, inside of feed-forward networks), or one of the others."""


SPEC = Ia3
