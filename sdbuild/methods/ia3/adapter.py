"""(IA)³ in layers of a base, with LyCORIS' names: outputs are scaled, of feed-forward networks the inside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdbuild.methods.ia3.maths import scaled
from sdbuild.methods.ia3.spec import Ia3
from sdbuild.methods.layers import Layer, LayersMethod, base_weight, uniform
from sdbuild.methods.spec import Size
from sdbuild.methods.targets import is_second


class Ia3Layer(Layer):
    """A layer whose outputs, or inputs, are scaled."""

    def __init__(self, base: nn.Module, spec: Ia3, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        self.on_input = is_second(path)
        self.add("scale", self.shape[1 if self.on_input else 0])

    def start(self, chance: torch.Generator) -> None:
        """Scale nothing."""
        uniform(self.own["scale"], 0.0, chance)

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Scale the inputs, or what the base computes of them, its bias left out."""
        vector = self.own["scale"]
        if self.on_input:
            found: Tensor = self.base_layer(x + strength * scaled(x, vector, self.axis))
            return found
        base: Tensor = self.base_layer(x)
        return base + strength * scaled(self.without_bias(base), vector, self.axis)

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return what scaling adds to the columns, or rows, of the weight."""
        return scaled(base_weight(self), self.own["scale"].detach(), 1 if self.on_input else 0), None

    def filed(self) -> dict[str, Tensor]:
        """Return the vector, with the axes of a convolution for one."""
        axes = (1, -1, 1, 1) if len(self.shape) == 4 else (-1,)
        return {"weight": self.own["scale"].detach().view(axes), "on_input": torch.tensor(int(self.on_input))}

    @torch.no_grad()
    def take(self, filed: Mapping[str, Tensor]) -> None:
        """Undo `filed`."""
        self.own["scale"].copy_(filed["weight"].flatten())


METHOD: LayersMethod[Ia3] = LayersMethod(Ia3Layer, lambda spec: {"algo": "ia3"})
