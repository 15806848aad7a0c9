"""GLoRA in layers of a base: the terms of weights in LyCORIS' names, those of activations as a change of the bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdbuild.methods.glora.maths import of_bias, of_weight
from sdbuild.methods.glora.spec import Glora
from sdbuild.methods.layers import Layer, LayersMethod, along, base_weight, uniform
from sdbuild.methods.spec import Size

FACTORS = ("a1", "a2", "b1", "b2")
BIAS = "diff_b"
"""What ComfyUI adds to a bias."""


class GloraLayer(Layer):
    """A layer whose weight is scaled and shifted, and whose activations are, too."""

    def __init__(self, base: nn.Module, spec: Glora, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out, into, *kernel = self.shape
        ones = [1] * len(kernel)
        self.add("a1", into, size.rank, *ones)
        self.add("a2", size.rank, into, *ones)
        self.add("b1", out, size.rank, *ones)
        self.add("b2", size.rank, into, *kernel)
        self.prompts = spec.activations and self.bias is not None
        if self.prompts:
            self.add("c", into)
            self.add("d", out)
            self.add("e", out)

    def start(self, chance: torch.Generator) -> None:
        """Let the second factors and what acts on activations be zero."""
        for name, parameter in self.own.items():
            uniform(parameter, parameter[0].numel() ** -0.5 if name in ("a1", "b1") else 0.0, chance)

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Change the inputs of the base, and add to its outputs."""
        seen = self.dropped(x)
        a1, a2, b1, b2 = (self.own[name].to(x.dtype) for name in FACTORS)
        scale = strength * self.size.scale
        inputs = x + scale * _channels(_channels(seen, a2), a1).to(x.dtype)
        linear = len(self.shape) == 2
        if self.prompts and linear:
            inputs = inputs + strength * self.own["c"].to(x.dtype)
        base: Tensor = self.base_layer(inputs)
        added = scale * _channels(self.applied(seen, b2), b1)
        if self.prompts:
            shift = self.own["d"] * self.inner.bias.float() + self.own["e"]
            if not linear:
                shift = shift + base_weight(self).flatten(2).sum(2) @ self.own["c"]
            added = added + along(strength * shift, added, self.axis)
        return base + added.to(base.dtype)

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return what all terms come to."""
        a1, a2, b1, b2 = (self.own[name].detach() for name in FACTORS)
        return self.size.scale * of_weight(base_weight(self), a1, a2, b1, b2), self._of_bias()

    def filed(self) -> dict[str, Tensor]:
        """Return the factors, and the terms of activations as the change of the bias that they come to."""
        filed = {f"{name}.weight": self.own[name].detach() for name in FACTORS}
        shift = self._of_bias()
        return filed | {"alpha": torch.tensor(self.size.alpha)} | ({} if shift is None else {BIAS: shift})

    @torch.no_grad()
    def take(self, filed: Mapping[str, Tensor]) -> None:
        """Read a change of the bias as a shift, which does the same."""
        for name in FACTORS:
            self.own[name].copy_(filed[f"{name}.weight"])
        if self.prompts:
            self.own["e"].copy_(filed[BIAS])

    @torch.no_grad()
    def _of_bias(self) -> Tensor | None:
        if not self.prompts:
            return None
        return of_bias(base_weight(self), self.inner.bias.float(), *(self.own[name] for name in "cde"))


def _channels(x: Tensor, weight: Tensor) -> Tensor:
    """Put channels through a matrix: the last axis for a weight of two axes, else the second."""
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight)


METHOD: LayersMethod[Glora] = LayersMethod(GloraLayer, lambda spec: {"algo": "glora", "rs_lora": spec.rank_stabilised})
