"""What recipes can say about LoKr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from sdbuild.methods.spec import Ranked


class Lokr(Ranked):
    """Kronecker products (LyCORIS, Yeh et al., 2024), the second factor of low rank: small files."""

    kind: Literal["lokr"] = "lokr"
    factor: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Largest side of the first factor; null makes both factors about as large, which is smallest."""
    full: bool = False
    """Whether the second factor is one matrix instead of two of a rank; `rank` and `alpha` then say nothing."""
    decompose_both: bool = False
    """Whether the first factor is of low rank too."""
    decompose_convolutions: bool = False
    """Whether convolutions larger than 1×1 get a small core of their own, with factors for channels alone."""

    @property
    def revised(self) -> Sequence[str]:
        """Cores were once in the files."""
        return (*super().revised, *(("cores",) if self.decompose_convolutions else ()))

    def rules(self) -> Iterator[tuple[str, str]]:
        """A matrix of full rank has no rank."""
        yield from super().rules()
        if self.full:
            for key in ("decompose_both", "decompose_convolutions", "parts", "rank_stabilised"):
                if getattr(self, key):
                    yield key, "does not go with full: true; remove one of the two"


SPEC = Lokr
