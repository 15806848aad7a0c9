"""What recipes can say about LoHa."""

from __future__ import annotations

from typing import Literal

from sdbuild.methods.spec import Ranked


class Loha(Ranked):
    """Low-rank Hadamard products (FedPara, Hyeon-Woo et al., 2022): a rank up to the square of that of the factors."""

    kind: Literal["loha"] = "loha"
    decompose_convolutions: bool = False
    """Whether convolutions larger than 1×1 get a small core of their own, with factors for channels alone."""


SPEC = Loha
