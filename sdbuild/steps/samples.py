"""The samples step: a grid of prompts × seeds × strengths, and each of its pictures.

Adapters that were kept on the way are drawn here too, when all training is done: nothing that draws is in memory while
networks train, and other prompts cost no training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.methods.lora.spec import Lora
from sdbuild.recipe.methods import method_of
from sdbuild.steps.contract import Context, Inputs, Items

if TYPE_CHECKING:
    from sdbuild.families.contract import Family
    from sdbuild.methods.spec import MethodSpec
    from sdbuild.sampling.draw import Sample, Settings
    from sdbuild.steps.model import Other

VERSION = 1
"""Of `samples.json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Along:
    """Adapters that were kept on the way to the result."""

    steps: Mapping[int, Path]
    result: int
    """Step of the result itself."""

    @classmethod
    def read(cls, folder: Path, every: int) -> _Along:
        """Those at each `every` steps."""
        index = json.loads((folder / "index.json").read_bytes())
        steps = {row["step"]: folder / row["folder"] for row in index["adapters"] if row["step"] % every == 0}
        return cls(steps=steps, result=index["result"])


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `samples/`: `grid.png`, single PNGs with their parameters, `samples.json`, and perhaps `progress.png`."""
    from sdbuild import families
    from sdbuild.sampling.draw import Settings, samples

    assert inputs.base is not None
    assert inputs.adapter is not None
    side = spec["resolution"]
    settings = Settings(
        width=side,
        height=side,
        refine_from=spec.get("refine_from", 1.0),
        prediction=spec.get("prediction"),
        zero_terminal_snr=spec.get("zero_terminal_snr", False),
        **{key: spec[key] for key in ("scheduler", "steps", "guidance", "negative")},
    )
    along = None
    if "every" in spec:
        assert inputs.adapters is not None
        along = _Along.read(inputs.adapters, spec["every"])
    wanted = samples(spec["prompts"], spec["seeds"], spec["strengths"])
    whole = samples(spec["prompts"], spec["seeds"], [1.0])
    missing = whole if along and 1 not in spec["strengths"] else []
    total = (
        len(wanted) + len(missing) + len(whole) * ((len(along.steps) if along else 0) + (1 if inputs.extracted else 0))
    )
    family = families.load(inputs.base, clip_skip=spec.get("clip_skip", 1))
    folder = out / "samples"
    folder.mkdir()
    others = [_other(each, inputs.project) for each in spec.get("adapters", ())]
    brush = _Brush(
        family=family, spec=spec, settings=settings, others=others, folder=folder, context=context, total=total
    )
    listed = brush.draw(inputs.adapter, spec["name"], [*wanted, *missing])
    content: dict[str, Any] = {"pictures": listed[: len(wanted)]}
    columns = [_caption(strength, len(others)) for strength in spec["strengths"]]
    shown: list[Mapping[str, Any]] = list(content["pictures"])
    if inputs.extracted is not None:
        found = brush.draw(inputs.extracted, spec["name"], whole, "extracted/", method=Lora())
        shown = [row for number, last in enumerate(found) for row in (*_row(shown, number, len(columns)), last)]
        columns.append("extracted LoRA")
        content["extracted"] = found
    brush.grid("grid.png", columns, shown)
    if along is not None:
        content["progress"] = _draw_progress(brush, along, whole, listed)
    _write_list(folder / "samples.json", spec, content)
    if spec.get("measure"):
        figures = _measure(family, inputs, folder, content["pictures"], context)
        (out / "samples.metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return Items(total=total, computed=total)


def check(spec: Mapping[str, Any], base: Path) -> None:
    """Make sure that the grid can be drawn with a base. Light.

    Raises:
        DataError: its sampler does not go with what the base or the adapter predicts.
    """
    from sdbuild.families.layout import read_config
    from sdbuild.sampling.schedulers import check_scheduler

    check_scheduler(spec["scheduler"], read_config(base, "scheduler"), prediction=spec.get("prediction"))


def _row(listed: Sequence[Mapping[str, Any]], number: int, length: int) -> Sequence[Mapping[str, Any]]:
    return listed[number * length : (number + 1) * length]


def _draw_progress(
    brush: _Brush, along: _Along, whole: Sequence[Sample], listed: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Draw adapters at full strength, and arrange them between base and result; list the pictures."""
    columns: dict[str, Sequence[Mapping[str, Any]]] = {"base": [row for row in listed if row["strength"] == 0]}
    for step, folder in sorted(along.steps.items()):
        found = brush.draw(folder, f"{brush.spec['name']}-{step:06d}", whole, f"{folder.name}/")
        columns[f"step {step}"] = [{**row, "step": step} for row in found]
    last = [{**row, "step": along.result} for row in listed if row["strength"] == 1]
    columns[f"step {along.result}: result"] = last
    shown = {title: column for title, column in columns.items() if column}
    brush.grid("progress.png", list(shown), [row for rows in zip(*shown.values(), strict=True) for row in rows])
    return [row for column in shown.values() for row in column if "step" in row]


@dataclass(kw_only=True)
class _Brush:
    """Draws pictures of a recipe into a folder."""

    family: Family
    spec: Mapping[str, Any]
    settings: Settings
    others: Sequence[Other]
    folder: Path
    context: Context
    total: int
    """Pictures of the whole step."""
    done: int = 0

    def draw(
        self, adapter: Path, name: str, wanted: Sequence[Sample], under: str = "", method: MethodSpec | None = None
    ) -> list[dict[str, Any]]:
        """Draw with the adapter in a folder that was exported under a name; return rows of `samples.json`.

        It is of the recipe's method unless another is given.
        """
        from accelerate import PartialState
        from PIL.PngImagePlugin import PngInfo

        from sdbuild.sampling.draw import draw, load_pipeline, parameters
        from sdbuild.steps.model import Trained, apply

        spec = self.spec
        self.context.progress(self.done, self.total, "pictures")
        own = Trained(method=method or method_of(spec["method"]), folder=adapter, name=name)
        add = partial(apply, family=self.family, own=own, others=self.others)
        pipeline, added = load_pipeline(self.family, PartialState().device, add, offload="offload" in spec)
        (self.folder / under).mkdir(exist_ok=True)
        said: Any = {"mention": own.method.mention, "whole": own.method.trains_base}
        listed = []
        for sample, picture in draw(pipeline, added, self.family, wanted, self.settings):
            number = spec["prompts"].index(sample.prompt)
            file = f"{under}{number:02d}-seed{sample.seed}-strength{_number(sample.strength)}.png"
            chunk = PngInfo()
            chunk.add_text("parameters", parameters(sample, self.settings, name, **said))
            picture.save(self.folder / file, pnginfo=chunk)
            listed.append({"file": file, "prompt": sample.prompt, "seed": sample.seed, "strength": sample.strength})
            self.done += 1
            self.context.progress(self.done, self.total, "pictures")
        return listed

    def grid(self, file: str, columns: Sequence[str], listed: Sequence[Mapping[str, Any]]) -> None:
        """Arrange pictures in reading order, a row for each prompt and seed."""
        from PIL import Image

        from sdbuild.sampling.grid import Row, make_grid

        spec, settings = self.spec, self.settings
        rows = [Row(prompt=prompt, note=f"seed {seed}") for prompt in spec["prompts"] for seed in spec["seeds"]]
        pictures = (Image.open(self.folder / row["file"]) for row in listed)
        title = f"{spec['name']}: {settings.scheduler}, {settings.steps} steps, guidance {settings.guidance:g}"
        make_grid(rows, columns, pictures, (settings.width, settings.height), title).save(self.folder / file)


def _measure(
    family: Family, inputs: Inputs, folder: Path, listed: Sequence[Mapping[str, Any]], context: Context
) -> Mapping[str, Any]:
    """Compare the grid's pictures with those trained on."""
    from accelerate import PartialState
    from PIL import Image

    from sdbuild.steps.measuring import Measuring

    assert inputs.captions is not None
    assert inputs.latents is not None
    measuring = Measuring(family, inputs.captions, inputs.latents, PartialState().device)
    for row in listed:
        with Image.open(folder / row["file"]) as picture:
            measuring.add(picture, _number(row["strength"]), row["prompt"])
    figures = measuring.figures()
    if figures is None:
        context.warn("sample.measure needs two different pictures to train on; there is nothing to compare with")
    return figures or {}


def _other(said: Mapping[str, Any], project: Path) -> Other:
    """Find another adapter of the grid; one that a recipe has made tells its method itself."""
    from sdbuild.steps.model import Other, Trained, method_in

    recipe, strength = said["recipe"], said["strength"]
    if recipe is None:
        return Other(name=said["path"], strength=strength, file=project / said["path"])
    folder = project / "build" / recipe / "adapter"
    method = method_in(folder / f"{recipe}.safetensors")
    assert method is not None
    return Other(name=recipe, strength=strength, trained=Trained(method=method, folder=folder, name=recipe))


def _caption(strength: float, others: int) -> str:
    if strength:
        return f"strength {_number(strength)}"
    return "others alone" if others else "base"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _write_list(path: Path, spec: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    always = ("scheduler", "steps", "guidance", "negative", "resolution")
    where_set = [key for key in ("prediction", "zero_terminal_snr", "every", "adapters") if key in spec]
    settings = {key: spec[key] for key in (*always, *where_set)}
    head = {"version": VERSION, "name": spec["name"], "settings": settings, "grid": "grid.png"}
    path.write_text(json.dumps({**head, **content}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
