"""How often pictures are seen: against counting them in the batches that a training has, and what `check` says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild import cli
from sdbuild.build.view_counts import views_of
from sdbuild.data.buckets import Fit
from sdbuild.data.records import ImageRecord
from sdbuild.recipe.load import load_project
from sdbuild.recipe.models import Recipe
from sdbuild.training.examples import Example
from sdbuild.training.inputs import sampler_of
from tests.conftest import Work
from tests.tiny import make_pictures, make_pipeline


def write(root: Path, datasets: list[dict[str, Any]], **sections: Any) -> Recipe:
    (root / "recipes").mkdir(exist_ok=True)
    (root / "recipes/cat.yaml").unlink(missing_ok=True)
    for dataset in datasets:
        (root / dataset["path"]).mkdir(parents=True, exist_ok=True)
    content = {"base": {"model": "emoji-64"}, "datasets": datasets, **sections}
    (root / "recipes/cat.yaml").write_text(yaml.safe_dump(content))
    return load_project(root)[0]


@pytest.mark.parametrize("shares", [[{"repeats": 3}, {}], [{"weight": 3}, {"weight": 1}], [{}, {}]])
def test_views_are_those_of_the_batches(tmp_path: Path, shares: list[dict[str, Any]]) -> None:
    datasets = [{"path": f"datasets/{number}", **share} for number, share in enumerate(shares)]
    recipe = write(tmp_path, datasets, train={"steps": 700, "batch": 4, "accumulate": 2})
    numbers, buckets = (3, 17), [(64, 64), (96, 64)]
    records, examples = [], []
    for dataset, count in enumerate(numbers):
        for index in range(count):
            first = buckets[index % 2]
            record = ImageRecord.whole(path=f"{index}", dataset=dataset, digest=f"{dataset}{index}", size=first)
            sizes = [first]
            if dataset == 0:  # at a second resolution too
                record = ImageRecord(
                    **{
                        **{name: getattr(record, name) for name in record.__slots__},
                        "further": (Fit(bucket=(128, 128), resize=(128, 128), crop=(0, 0)),),
                    }
                )
                sizes.append((128, 128))
            records.append(record)
            for size in sizes:
                said: Any = {"digest": record.digest, "dataset": dataset, "text": "", "texts": ("",), "latents": ()}
                repeats = recipe.datasets[dataset].repeats
                examples.append(Example(key=f"{record.key}@{size}", shape=(4, *size), repeats=repeats, **said))
    specs = [dataset.model_dump(exclude_none=True) for dataset in recipe.datasets]
    sampler = sampler_of(examples, specs, batch=8, seed=0)
    seen = Counter(examples[index].dataset for step in range(700) for index in sampler.batch(step))
    expected = views_of(recipe, records)
    for dataset, count in enumerate(numbers):
        assert seen[dataset] / count == pytest.approx(expected[dataset], rel=0.02)


def test_check_tells_what_overcooks(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(work.root / "datasets/cats", 7)
    monkeypatch.chdir(work.root)
    datasets = [{"path": "datasets/cats", "holdout": 1}]
    images = {"resolution": 64, "buckets": {"step": 8}}

    def said(**sections: Any) -> str:
        write(work.root, datasets, images=images, **sections)
        assert cli.main(["check"]) == 0
        return "".join(capsys.readouterr())

    text = said(train={"steps": 1500, "batch": 8})
    assert (
        "1500 steps of 8 see each of the 6 pictures of datasets/cats 2,000 times; lora usually takes 50 to 400" in text
    )
    assert "far" not in text
    assert "warning" not in said(train={"steps": 300, "batch": 8})
    stops = {"steps": 1500, "batch": 8, "validate_every": 50, "early_stop": {"patience": 2}}
    assert "warning" not in said(train=stops)
    full = said(train={"steps": 150, "batch": 8, "learning_rate": 0.5}, method={"kind": "full"})
    assert "200 times; full usually takes 5 to 100" in full
    assert "train.learning_rate 0.5 is far above the usual range of full, 1e-06 to 1e-05" in full


def test_check_tells_what_clip_skip_is_on_sdxl(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(work.root / "datasets/cats", 4)
    monkeypatch.chdir(work.root)
    for family in ("sd1", "sdxl"):
        make_pipeline(work.root / family, family=family)
    images = {"resolution": 64, "buckets": {"step": 8}}
    for base, told in (
        ({"model": "sdxl", "clip_skip": 2}, True),
        ({"model": "org/pony", "clip_skip": 2}, True),
        ({"model": "org/pony", "clip_skip": 2, "family": "sd1"}, False),
        ({"model": "sdxl"}, False),
        ({"model": "sd1", "clip_skip": 2}, False),
    ):
        write(work.root, [{"path": "datasets/cats"}], base=base, images=images, train={"steps": 20})
        assert cli.main(["check"]) == 0
        text = "".join(capsys.readouterr())
        assert ("warning: cat: base.clip_skip 2 takes the layer before" in text) is told, text
