"""What recipes can say about OFT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdbuild.methods.spec import Layered


class Oft(Layered):
    """Orthogonal fine-tuning (Qiu et al., 2023): blocks of outputs are turned, angles between neurons stay."""

    kind: Literal["oft"] = "oft"
    block: Annotated[int, Field(ge=2, le=1024)] = 32
    """Largest size of a block of outputs that turn together, at most the root of their number; size grows with it."""


SPEC = Oft
