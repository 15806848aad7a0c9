"""Learning rates by method and optimizer: what a recipe has that says none, and what is said of odd ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.methods import METHODS
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_project
from sdbuild.recipe.methods import SPECS
from sdbuild.recipe.models import Recipe
from tests.recipe.helpers import DATA, GOOD, write

FIELD = {
    "lora": (1e-4, (1e-4, 3e-4)),
    "full": (5e-6, (2e-6, 5e-6, 1e-5)),
    "partial": (5e-6, (2e-6, 1e-5)),
    "dreambooth": (5e-6, (2e-6, 5e-6)),
    "dreambooth_lora": (1e-4, (1e-4, 3e-4)),
    "ia3": (5e-3, (3e-3, 5e-3, 1e-2)),
    "hypernetwork": (1e-5, (5e-5, 1e-5)),
    "textual_inversion": (5e-4, (5e-4, 5e-3)),
    "pivotal": (1e-4, (1e-4, 3e-4)),
}
"""Default, and rates of peers' own examples and defaults, of which nothing is said."""
REQUIRED = {
    "partial": ", layers: [attn2]",
    "textual_inversion": ", tokens: [{token: <toy>}]",
    "pivotal": ", tokens: [{token: <toy>}]",
}
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "recipe.md").read_text()


def recipe(project: Path, kind: str, train: str = "", base: str = "org/base") -> Recipe:
    section = f"train: {{{train}}}\n" if train else ""
    method = f"method: {{kind: {kind}{REQUIRED.get(kind, '')}}}\n"
    write(project, cat=f"base: {{model: {base}}}\n{DATA}{method}{section}")
    return load_project(project)[0]


def rate(project: Path, kind: str, train: str = "") -> float:
    return recipe(project, kind, train).train.learning_rate


def warnings(project: Path, kind: str, train: str = "", base: str = "org/base") -> list[str]:
    return [warning for warning in recipe(project, kind, train, base).warnings() if warning.startswith("train.")]


@pytest.mark.parametrize("kind", METHODS)
def test_a_recipe_that_says_no_rate_has_its_methods(project: Path, kind: str) -> None:
    wanted, usual = FIELD.get(kind, FIELD["lora"])
    for train in ("", "steps: 9", "optimizer: adamw-8bit"):
        assert rate(project, kind, train) == wanted
        assert warnings(project, kind, train) == []
    for peer in usual:
        assert warnings(project, kind, f"learning_rate: {peer}") == []
    made = recipe(project, kind)
    assert made.resolved()["train"]["learning_rate"] == wanted
    assert next(step for step in plan(made) if step.kind == "train").spec["train"]["learning_rate"] == wanted


def test_optimizers_with_a_scale_of_their_own(project: Path) -> None:
    assert rate(project, "lora", "optimizer: prodigy") == 1
    assert rate(project, "full", "optimizer: prodigy") == 1
    assert rate(project, "lora", "optimizer: came") == pytest.approx(1e-5)
    for optimizer in ("lion-8bit", "lion-8bit-paged"):
        assert rate(project, "lora", f"optimizer: {optimizer}") == pytest.approx(2e-5)
        assert rate(project, "full", f"optimizer: {optimizer}") == pytest.approx(1e-6)
        assert warnings(project, "lora", f"optimizer: {optimizer}") == []
    said = warnings(project, "lora", "optimizer: lion-8bit, learning_rate: 2e-3")
    assert said == [
        "train.learning_rate 0.002 is far above the usual range of lora with lion-8bit, 2e-06 to 0.0002; "
        "without the key it is 2e-05"
    ]
    assert warnings(project, "lora", "optimizer: sgd, learning_rate: 0.5") == []
    (said_of_sgd,) = warnings(project, "lora", "optimizer: sgd")
    assert "sgd has no usual learning rate" in said_of_sgd


def test_a_rate_that_is_said_stays(project: Path) -> None:
    assert rate(project, "full", "learning_rate: 1e-4") == 1e-4
    write(project, cat=GOOD + "method: {kind: ia3}\nmatrix: {train.learning_rate: [1e-3, 2e-3]}\n")
    assert [each.train.learning_rate for each in load_project(project)] == [1e-3, 2e-3]
    write(project, cat=GOOD + "matrix: {method: [{kind: ia3}, {kind: lora}], train.optimizer: [adamw, prodigy]}\n")
    assert [each.train.learning_rate for each in load_project(project)] == [5e-3, 1.0, 1e-4, 1.0]


@pytest.mark.parametrize(
    ("kind", "train", "word"),
    [
        ("full", "learning_rate: 1e-4", "above"),
        ("partial", "learning_rate: 1e-4", "above"),
        ("dreambooth", "learning_rate: 1e-4", "above"),
        ("ia3", "learning_rate: 1e-4", "below"),
        ("lora", "learning_rate: 0.05", "above"),
        ("lora", "learning_rate: 1e-7", "below"),
        ("textual_inversion", "learning_rate: 1e-6", "below"),
        ("hypernetwork", "learning_rate: 1e-3", "above"),
    ],
)
def test_rates_far_from_the_fields_are_told(project: Path, kind: str, train: str, word: str) -> None:
    (said,) = warnings(project, kind, train)
    low, high = next(spec.usual for spec in SPECS if spec.model_fields["kind"].default == kind).rates
    assert f"is far {word} the usual range of {kind}, {low:g} to {high:g}" in said


def test_rates_of_parts_are_looked_at(project: Path) -> None:
    both = "learning_rate: 1e-4, learning_rates: {denoiser: 0.9, embeddings: 1e-7}"
    said = warnings(project, "pivotal", both)
    assert [each.split()[0] for each in said] == ["train.learning_rates.denoiser", "train.learning_rates.embeddings"]
    assert warnings(project, "pivotal", "learning_rates: {embeddings: 2e-3}") == []


def test_an_embedded_base_is_small_and_takes_more_where_its_own_weights_are_trained(project: Path) -> None:
    assert warnings(project, "full", "learning_rate: 1e-4", base="emoji-64") == []
    assert warnings(project, "full", "learning_rate: 1e-2", base="emoji-64")
    assert warnings(project, "lora", "learning_rate: 0.05", base="emoji-64")


def test_the_reference_has_the_table() -> None:
    for spec in SPECS:
        kind, usual = spec.model_fields["kind"].default, spec.usual
        row = next(line for line in PAGE.splitlines() if line.startswith("|") and f"`{kind}`" in line and "e-" in line)
        cells = [cell.strip() for cell in row.split("|")]
        assert float(cells[2]) == usual.rate
        assert tuple(map(float, cells[3].split(" to "))) == usual.rates
        assert tuple(int(each.replace(",", "")) for each in cells[4].split(" to ")) == usual.views
