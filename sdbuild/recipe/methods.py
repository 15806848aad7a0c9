"""Ways to adapt: one spec a method, told apart by `kind`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, TypeAdapter

from sdbuild.methods import METHODS
from sdbuild.methods.spec import MethodSpec

SPECS: tuple[type[MethodSpec], ...] = tuple(
    importlib.import_module(f"{package}.spec").SPEC for package in METHODS.values()
)
"""Of all methods, in the order of `METHODS`."""

if TYPE_CHECKING:
    Method = MethodSpec
else:
    Method = Annotated[Union[SPECS], Field(discriminator="kind")]  # noqa: UP007  # made of a tuple

_METHOD: TypeAdapter[MethodSpec] = TypeAdapter(Method)
_BY_KIND: Mapping[Any, type[MethodSpec]] = {spec.model_fields["kind"].default: spec for spec in SPECS}


def method_of(section: Mapping[str, Any]) -> MethodSpec:
    """Read a resolved recipe's or a step's section `method` again, also one that an earlier release has written.

    Raises:
        ValidationError: it is not a method that is known here.
    """
    spec = _BY_KIND.get(section.get("kind"))
    return _METHOD.validate_python(section if spec is None else spec.completed(section))
