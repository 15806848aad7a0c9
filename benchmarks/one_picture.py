"""One picture of many is changed: what is computed, and what the build takes over one that has nothing to do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Cost, Options, Row, at_most, cost, folder, main, median_costs, told
from benchmarks.project import DOIT, PYTHON, new_project, quick_recipe
from sdbuild.data.listing import PICTURES
from tests.conftest import Result, Work
from tests.tiny import make_pictures

STEPS = ("cat:latents", "cat:text")
LOAD = """
import torch
from pathlib import Path
from sdbuild import families
encoder = families.load(Path("base")).load_vae()
encoder.encode(torch.zeros(1, 3, 32, 32))
"""
DVC = """
from dvc.repo import Repo
from dvc.stage import create_stage
Repo(".").close()
"""


def measure(options: Options) -> list[Row]:
    """Build a project, change the pixels of one picture and build again."""
    runs = 1 if options.small else 5
    with folder() as root:
        work = Work(options.built).copy(root / "project") if options.built else project(root / "project", options)
        data = work.root / "datasets" / "cats"
        count = len(list(pictures_of(data)))
        cost([DOIT, *STEPS], work.root)
        parts = median_costs(
            {
                "noop": ([DOIT, *STEPS], work.root),
                "load": ([PYTHON, "-c", LOAD], work.root),
                "dvc": ([PYTHON, "-c", DVC], work.root),
            },
            runs,
        )
        changed: list[tuple[Cost, dict[str, int]]] = []
        for path in list(pictures_of(data))[:runs]:
            repaint(path)
            built = cost([DOIT, *STEPS], work.root)
            changed.append((built, ran(built)))
    latents = [found.get("cat:latents", 0) for _, found in changed]
    texts = [found.get("cat:text", 0) for _, found in changed]
    over = sorted(built.cpu for built, _ in changed)[len(changed) // 2] - parts["noop"].cpu
    notes = (
        f"no-op build: {parts['noop']}",
        f"builds after a change: {'; '.join(str(built) for built, _ in changed)}",
        f"loading the model, encoding one picture: {parts['load']}",
        f"importing DVC, opening the project: {parts['dvc']}",
        f"ran: {changed[-1][1]}",
    )
    exact = all(number == 1 for number in latents) and all(number <= 1 for number in texts)
    what = f"one of {count:,} pictures changed"
    return [
        Row(
            what=f"{what}: computed",
            measured=f"{max(latents)} latent, {max(texts)} text",
            bar="1 latent, <= 1 text",
            ok=exact,
            notes=notes,
        ),
        at_most(
            f"{what}: CPU over a no-op, over loading model and DVC, one item",
            over / (parts["load"].cpu + parts["dvc"].cpu),
            1.5,
            f"over a no-op build: {over:.3g} s CPU",
            *notes,
        ),
    ]


def project(root: Path, options: Options) -> Work:
    """Make a project on the pictures given, or on made ones, and build what is measured."""
    work = new_project(root)
    data = work.root / "datasets" / "cats"
    if options.pictures:
        copy_pictures(options.pictures, data)
    else:
        make_pictures(data, 10 if options.small else 1599, size=32)
    quick_recipe(work, "cat", resolution=32)
    told(f"  built: {cost([DOIT, *STEPS], work.root)}")
    return work


def copy_pictures(source: Path, target: Path) -> None:
    """Copy a folder of pictures, with captions made where it has none."""
    shutil.copytree(source, target)
    for number, path in enumerate(pictures_of(target)):
        caption = path.with_suffix(".txt")
        if not caption.exists():
            caption.write_text(f"picture {number}\n", encoding="utf-8")


def pictures_of(folder: Path) -> Iterator[Path]:
    """List the pictures of a folder, sorted."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES)


def repaint(path: Path) -> None:
    """Change the pixels of a picture."""
    from PIL import Image, ImageChops

    with Image.open(path) as image:
        ImageChops.invert(image.convert("RGB")).save(path, lossless=True)


def ran(built: Cost) -> dict[str, int]:
    """Return the items that each step computed."""
    return Result(0, built.out, "").ran


if __name__ == "__main__":
    sys.exit(main(measure))
