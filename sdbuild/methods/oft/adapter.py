"""OFT in layers of a base, with the names of kohya's and LyCORIS' files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdbuild.methods.layers import Layer, LayersMethod, base_weight, uniform
from sdbuild.methods.oft.maths import block_size, cayley, turn
from sdbuild.methods.oft.spec import Oft
from sdbuild.methods.spec import Size

FREE = 1e6
"""Readers take alpha for a limit of the turns, and some need one; this one limits nothing."""


class OftLayer(Layer):
    """A layer whose outputs are turned."""

    def __init__(self, base: nn.Module, spec: Oft, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out = self.shape[0]
        side = block_size(out, spec.block)
        self.add("oft_blocks", out // side, side, side)

    def start(self, chance: torch.Generator) -> None:
        """Turn nothing."""
        uniform(self.own["oft_blocks"], 0.0, chance)

    def moves(self) -> Tensor:
        """Each block's turn, without what stays: R - I."""
        turned = cayley(self.own["oft_blocks"])
        return turned - torch.eye(turned.shape[-1], device=turned.device)

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Turn what the base computes, its bias left out."""
        base: Tensor = self.base_layer(x)
        outputs = self.without_bias(base).movedim(self.axis, 0)
        moved = turn(self.moves().to(base.dtype), outputs)
        return base + strength * moved.movedim(0, self.axis).to(base.dtype)

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return how the rows of the weight move."""
        return turn(self.moves(), base_weight(self)), None

    def filed(self) -> dict[str, Tensor]:
        """Say to readers that there is no limit."""
        return super().filed() | {"alpha": torch.tensor(FREE)}


METHOD: LayersMethod[Oft] = LayersMethod(OftLayer, lambda spec: {"algo": "diag-oft", "block_size": spec.block})
