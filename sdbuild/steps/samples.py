"""The samples step: a grid of prompts × seeds × strengths, and each of its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdbuild.recipe.methods import method_of
from sdbuild.steps.contract import Context, Inputs, Items

VERSION = 1
"""Of `samples.json`."""


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `samples/`: `grid.png`, single PNGs with their parameters, and `samples.json`."""
    from accelerate import PartialState
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from sdbuild import families
    from sdbuild.sampling.draw import Settings, draw, load_pipeline, parameters, samples
    from sdbuild.sampling.grid import Row, make_grid
    from sdbuild.steps.model import apply

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
    wanted = samples(spec["prompts"], spec["seeds"], spec["strengths"])
    folder = out / "samples"
    folder.mkdir()
    context.progress(0, len(wanted), "pictures")
    family = families.load(inputs.base, clip_skip=spec.get("clip_skip", 1))
    add = partial(apply, family=family, method=method_of(spec["method"]), folder=inputs.adapter, name=spec["name"])
    pipeline, adapter = load_pipeline(family, PartialState().device, add, offload="offload" in spec)
    listed: list[dict[str, Any]] = []
    for done, (sample, picture) in enumerate(draw(pipeline, adapter, family, wanted, settings), start=1):
        name = f"{spec['prompts'].index(sample.prompt):02d}-seed{sample.seed}-strength{_number(sample.strength)}.png"
        chunk = PngInfo()
        chunk.add_text("parameters", parameters(sample, settings, spec["name"]))
        picture.save(folder / name, pnginfo=chunk)
        listed.append({"file": name, "prompt": sample.prompt, "seed": sample.seed, "strength": sample.strength})
        context.progress(done, len(wanted), "pictures")
    rows = [Row(prompt=prompt, note=f"seed {seed}") for prompt in spec["prompts"] for seed in spec["seeds"]]
    columns = [_caption(strength) for strength in spec["strengths"]]
    pictures = (Image.open(folder / row["file"]) for row in listed)
    title = f"{spec['name']}: {settings.scheduler}, {settings.steps} steps, guidance {settings.guidance:g}"
    make_grid(rows, columns, pictures, (side, side), title).save(folder / "grid.png")
    _write_list(folder / "samples.json", spec, listed)
    return Items(total=len(wanted), computed=len(wanted))


def _caption(strength: float) -> str:
    return f"strength {_number(strength)}" if strength else "base"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _write_list(path: Path, spec: Mapping[str, Any], listed: Sequence[Mapping[str, Any]]) -> None:
    always = ("scheduler", "steps", "guidance", "negative", "resolution")
    where_set = [key for key in ("prediction", "zero_terminal_snr") if key in spec]
    settings = {key: spec[key] for key in (*always, *where_set)}
    content = {"version": VERSION, "name": spec["name"], "settings": settings, "grid": "grid.png", "pictures": listed}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
