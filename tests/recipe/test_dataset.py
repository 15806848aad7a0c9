"""Settings of datasets: what goes together, and what is said of what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.recipe.load import load_project
from tests.recipe.helpers import complaints, put, write

HEAD = "base: {model: emoji-64}\n"
FOLDERS = ("datasets/cat", "datasets/dog")


def recipe(*datasets: str, rest: str = "") -> str:
    rows = [f"  - {{path: {FOLDERS[index]}{text and ', '}{text}}}\n" for index, text in enumerate(datasets)]
    return f"{HEAD}datasets:\n{''.join(rows)}{rest}"


@pytest.fixture(autouse=True)
def folders(project: Path) -> None:
    for folder in FOLDERS:
        put(project, f"{folder}/a.png")


def test_everything_at_once(project: Path) -> None:
    rest = "images: {resolution: 64, buckets: {step: 32}, crop: random, crops: 3}\n"
    first = "weight: 0.5, resolutions: [64, 96], tags: {keep: 0, dropout: 0.1}, mask: {from: sidecar}, lines: true"
    write(project, a=recipe(first, "weight: 2, mask: {from: folder, folder: masks/, minimum: 0.2}", rest=rest))
    (one,) = load_project(project)
    first_set, second = one.resolved()["datasets"]
    assert first_set["tags"] == {"separator": ",", "keep": 0, "shuffle": True, "dropout": 0.1, "variants": 8}
    assert first_set["mask"] == {"from": "sidecar", "suffix": ".mask", "minimum": 0.0}
    assert second["mask"] == {"from": "folder", "folder": "masks", "minimum": 0.2}
    assert (first_set["resolutions"], second["resolutions"]) == ([64, 96], None)


@pytest.mark.parametrize(
    ("datasets", "rest", "message"),
    [
        (["weight: 2, repeats: 3"], "", "datasets[0].weight: says how often pictures are seen, and so does repeats 3"),
        (["weight: 2", ""], "", "datasets[1]: has no weight, another dataset has one; give each a weight, or none"),
        (["", "weight: 2"], "", "datasets[0]: has no weight"),
        (["weight: 0"], "", "datasets[0].weight: must be greater than 0"),
        (
            ["resolutions: [512, 520]"],
            "",
            "datasets[0].resolutions[1]: 520 is not divisible by buckets.step 64",
        ),
        (["resolution: 512"], "", "unknown key (did you mean resolutions?)"),
        (["resolutions: [512, 512]"], "", "512 is there twice"),
        (["tags: {shuffle: false}"], "", "tags.shuffle: tags are neither shuffled nor dropped; set dropout"),
        (["mask: alpha"], "", "datasets[0].mask: must be a mapping such as {from: alpha}"),
        (["mask: {from: alfa}"], "", "unknown from 'alfa' (did you mean alpha?)"),
        (["mask: {from: folder}"], "", "mask.folder: is missing (folder of the masks inside the dataset's folder"),
        (["mask: {from: folder, folder: ../x}"], "", "'../x' is no folder inside the dataset's folder"),
        (["mask: {from: sidecar, suffix: masks/}"], "", "has a slash; for masks in a folder write mask: {from: folder"),
        ([""], "images: {crops: 2}\n", "images.crops: 2 crops at the center would be alike; set crop: random"),
    ],
)
def test_what_does_not_go_together(project: Path, datasets: list[str], rest: str, message: str) -> None:
    write(project, a=recipe(*datasets, rest=rest))
    (complaint,) = complaints(project)
    assert message in complaint
    assert complaint.startswith("recipes/a.yaml:")
