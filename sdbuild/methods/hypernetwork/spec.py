"""What recipes can say about hypernetworks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sdbuild.methods.spec import MethodSpec, Usual
from sdbuild.recipe.spec import Some


class Hypernetwork(MethodSpec):
    """Small networks that change what keys and values of cross-attention see of the text, as the web UIs have them."""

    usual: ClassVar[Usual] = Usual(rate=1e-5, rates=(1e-6, 1e-4), views=(200, 5000))
    """A1111: 1e-5, and schedules from 5e-5 down to 1e-6 over 10,000 steps and more."""
    modelspec: ClassVar[str] = "/hypernetwork"
    mention: ClassVar[str] = " <hypernet:{name}:{strength:g}>"

    kind: Literal["hypernetwork"] = "hypernetwork"
    layers: Annotated[Some[Annotated[float, Field(ge=0.125, le=16)]], Field(max_length=16)] = (1.0, 2.0, 1.0)
    """Widths of the layers as multiples of the text's; the first and the last are 1."""
    activation: Literal["linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "mish"] = "linear"
    """Function after each layer but the last."""
    layer_norm: bool = False
    """Whether a layer norm follows each layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the values that is set to zero in each training step, after each layer but the last."""
    start: Literal["normal", "xavier-uniform", "xavier-normal", "kaiming-uniform", "kaiming-normal"] = "normal"
    """Distribution of the first weights; the last layer, or its norm, starts at zero."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """What goes in comes out at the same width."""
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            yield "layers", "must begin and end with 1, such as [1, 2, 1]"


SPEC = Hypernetwork
