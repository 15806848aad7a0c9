"""What a plan is made of: steps with their inputs and outs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from sdbuild.recipe.names import dvc_name
from sdbuild.recipe.places import out_of

StepKind = Literal["images", "captions", "prior", "latents", "text", "train", "extract", "samples"]
STEP_KINDS: tuple[StepKind, ...] = get_args(StepKind)

View = Literal["pictures", "captions", "pixels", "texts", "records", "base", "model"]
"""What a step really reads of its inputs; see `sdbuild.data.views`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dep:
    """An input of a step: a file or folder, relative to the project."""

    path: str
    viewed: bool = False
    """The step reads a part of it; when the whole has changed, the step's views decide whether it is stale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Out:
    """A file or folder that a step writes, relative to the project."""

    path: str
    kind: Literal["out", "metric", "plot"] = "out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of one recipe."""

    recipe: str
    """Its name, or that of the variant."""
    kind: StepKind
    spec: Mapping[str, Any]
    """The part of the recipe that this step sees (JSON), with the step kind's `version`."""
    deps: tuple[Dep, ...]
    outs: tuple[Out, ...]
    views: tuple[View, ...] = ()
    base: Base
    """Where the base model comes from; only its content counts, see `components`."""
    components: tuple[str, ...] = ()
    """Sub-folders of the base that the step reads."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe that say how the step goes about; no result depends on them."""
    final: bool = False
    """Its outs are what users want; they are brought back even when no step needs them."""

    @property
    def name(self) -> str:
        """Name in messages and on the command line: ``cat:train``."""
        return f"{self.recipe}:{self.kind}"

    @property
    def stage(self) -> str:
        """Name of the DVC stage: ``cat-train``, of a variant ``cat__rank-4-train``."""
        return f"{dvc_name(self.recipe)}-{self.kind}"

    @property
    def built_base(self) -> tuple[Dep, ...]:
        """Outs of other recipes that the base is taken from, if the step reads it."""
        return self.base.deps if "base" in self.views else ()

    @property
    def command(self) -> str:
        """What DVC runs to build the step; doit runs the same worker."""
        return f"sdbuild step {self.name}"

    @property
    def folder(self) -> str:
        """Folder of the recipe's outs."""
        return f"build/{self.recipe}"

    @property
    def adapter(self) -> str | None:
        """File of the adapter that the step trains."""
        return f"{self.folder}/adapter/{self.recipe}.safetensors" if self.kind == "train" else None

    @property
    def grid(self) -> str | None:
        """File of the grid that the step draws."""
        return f"{self.folder}/samples/grid.png" if self.kind == "samples" else None

    @property
    def progress(self) -> str | None:
        """File of the grid of adapters that were kept on the way."""
        return f"{self.folder}/samples/progress.png" if self.kind == "samples" and "every" in self.spec else None

    @property
    def params_file(self) -> str:
        """File that holds the step's spec under `params_key`."""
        return f"{self.folder}/recipe.json"

    @property
    def params_key(self) -> str:
        """Dotted key of the spec in `params_file`."""
        return f"steps.{self.kind}"

    def parameters(self, reads: Mapping[str, str]) -> dict[str, Any]:
        """The spec with the digests of what the step reads: all that its result depends on."""
        return {**self.spec, "reads": dict(reads)}

    def params(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the step as DVC records them, in the order in which it reads them from `params_file`."""
        return {self.params_file: {self.params_key: json.loads(json.dumps(parameters, sort_keys=True))}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The base model as the recipe names it."""

    model: str
    revision: str | None = None
    """Commit, tag or branch that the recipe asks for."""
    commit: str | None = None
    """What that was when it was resolved; builds stay at it until the recipe asks for something else."""
    variant: str | None = None
    family: str | None = None
    vae: str | None = None
    vae_commit: str | None = None
    """As `commit`, of a VAE that is a hub id."""
    refiner: str | None = None
    refiner_commit: str | None = None
    config: str | None = None
    prediction_type: str | None = None
    t5: bool = True

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Base:
        """The base of a resolved recipe, or of a `recipe.json`: a section `base`."""
        return cls(**{field.name: section[field.name] for field in fields(cls) if field.name in section})

    def stated(self) -> dict[str, Any]:
        """As JSON: model, revision and commit, and what else a recipe says."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        usual = {field.name: field.default for field in fields(self)}
        always = ("model", "revision", "commit")
        return {name: value for name, value in said.items() if name in always or value != usual[name]}

    @property
    def deps(self) -> tuple[Dep, ...]:
        """Outs of other recipes that it is taken from."""
        outs = dict.fromkeys(out_of(path) for path in (self.model, self.vae) if path is not None)
        return tuple(Dep(path=out, viewed=True) for out in outs if out is not None)

    @property
    def wanted(self) -> str | None:
        """What to look for."""
        return self.commit or self.revision
