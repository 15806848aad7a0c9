"""From the outs of earlier steps to batches: resolutions, variants, texts, masks and shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdbuild.data.items import ItemStore, ShardReader, export, item_key
from sdbuild.data.records import CaptionRecord, write_lines
from sdbuild.data.sampler import Sampler
from sdbuild.data.shares import WeightedSampler
from sdbuild.errors import StepError
from sdbuild.training.examples import Batches, Example
from sdbuild.training.inputs import data_digest, pictures, read_examples, sampler_of

TAGS = {"separator": ",", "keep": 1, "shuffle": True, "dropout": 0.0, "variants": 4}
SMALL, LARGE = (4, 4, 4), (4, 8, 4)


def caption(digest: str, dataset: int = 0, *others: str, split: Any = "train") -> CaptionRecord:
    text = f"a {digest}, x, y, z"
    return CaptionRecord(digest=digest, dataset=dataset, text=text, origin="sidecar", split=split, others=others)


def latents(folder: Path, *items: dict[str, Any]) -> Path:
    """Write latent items `{"digest", "shape", "flip"?, "datasets"?, "mask"?}` as the latents step does."""
    tensors, rows = {}, []
    for number, item in enumerate(items):
        key, mean = item_key("latent", number=number), torch.full(item["shape"], float(number))
        tensors[key] = {"mean": mean, "logvar": torch.full(item["shape"], -30.0)}
        if "mask" in item:
            tensors[key]["mask"] = torch.full((1, *item["shape"][1:]), item["mask"])
        datasets = {"datasets": item["datasets"]} if "datasets" in item else {}
        rows.append({"digest": item["digest"], "flip": item.get("flip", False), "key": key, **datasets})
    store = ItemStore(folder / "store")
    store.add(tensors)
    export(tensors, folder / "latents", [store])
    write_lines(folder / "latents/index.jsonl", rows)
    return folder / "latents"


class Texts:
    """Conditions that write down what was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        self.seen += texts
        return {}


def batches(folder: Path, examples: Sequence[Example], *, batch: int = 2) -> tuple[Batches, Texts]:
    sampler, texts = sampler_of(examples, [{}, {}], batch=batch, seed=3), Texts()
    made = Batches(
        choose=lambda step: [examples[index] for index in sampler.batch(step)],
        size=batch,
        latent=ShardReader(folder).read,
        scale=lambda latent: latent,
        conditions=texts,
        seed=3,
        timesteps=10,
        caption_dropout=0.0,
        device=torch.device("cpu"),
    )
    return made, texts


def test_a_record_is_an_example_at_each_resolution(tmp_path: Path) -> None:
    folder = latents(
        tmp_path,
        {"digest": "a", "shape": SMALL},
        {"digest": "a", "shape": SMALL, "flip": True},
        {"digest": "a", "shape": LARGE},
        {"digest": "b", "shape": SMALL},
    )
    examples, _ = read_examples([caption("a"), caption("b")], folder, [{"repeats": 2}])
    assert [(example.key, example.shape, len(example.latents)) for example in examples] == [
        ("0:a@4x4", SMALL, 2),
        ("0:a@4x8", LARGE, 1),
        ("0:b", SMALL, 1),
    ]
    assert pictures(examples) == 2
    assert {example.repeats for example in examples} == {2}


def test_datasets_see_the_same_pixels_in_their_own_ways(tmp_path: Path) -> None:
    folder = latents(
        tmp_path, {"digest": "a", "shape": SMALL, "datasets": [0]}, {"digest": "a", "shape": LARGE, "datasets": [1]}
    )
    both: list[dict[str, Any]] = [{"repeats": 1}, {"repeats": 1, "mask_minimum": 0.5}]
    examples, _ = read_examples([caption("a"), caption("a", 1)], folder, both)
    assert [(example.key, example.shape, example.mask_minimum) for example in examples] == [
        ("0:a", SMALL, 0.0),
        ("1:a", LARGE, 0.5),
    ]
    with pytest.raises(StepError, match="no latent for"):
        read_examples([caption("a", 2)], folder, [*both, {"repeats": 1}])


def test_what_is_held_out_is_seen_plainly(tmp_path: Path) -> None:
    folder = latents(tmp_path, {"digest": "a", "shape": SMALL}, {"digest": "b", "shape": SMALL})
    datasets: list[dict[str, Any]] = [{"repeats": 1, "tags": TAGS}]
    (trained,), (held,) = read_examples([caption("a"), caption("b", split="holdout")], folder, datasets)
    assert (len(trained.texts), held.texts) == (4, ("a b, x, y, z",))


def test_captions_are_drawn_by_seed_step_and_record(tmp_path: Path) -> None:
    folder = latents(tmp_path, {"digest": "a", "shape": SMALL}, {"digest": "b", "shape": SMALL})
    records = [caption("a", 0, "another", "third"), caption("b")]
    examples, _ = read_examples(records, folder, [{"repeats": 1}])
    made, texts = batches(folder, examples)
    for step in range(600):
        list(made(step))
    counts = Counter(texts.seen)
    assert counts["a b, x, y, z"] == 600
    assert all(counts[text] == pytest.approx(200, abs=45) for text in ("a a, x, y, z", "another", "third"))
    again, other = batches(folder, examples)
    list(again(577))
    assert other.seen == texts.seen[577 * 2 : 578 * 2]


def test_variants_of_latents_are_drawn_and_batches_have_one_shape(tmp_path: Path) -> None:
    items = [{"digest": "a", "shape": SMALL} for _ in range(3)]
    folder = latents(tmp_path, *items, {"digest": "a", "shape": LARGE}, {"digest": "b", "shape": LARGE})
    examples, _ = read_examples([caption("a"), caption("b")], folder, [{"repeats": 1}])
    made, _ = batches(folder, examples)
    seen = Counter(float(value) for step in range(300) for batch in made(step) for value in batch.x[:, 0, 0, 0].round())
    assert [seen[value] for value in (3.0, 4.0)] == [200, 200], "as often as the small ones together"
    assert sum(seen[value] for value in (0.0, 1.0, 2.0)) == 200
    assert all(seen[value] == pytest.approx(67, abs=20) for value in (0.0, 1.0, 2.0))


def test_masks_have_their_minimum(tmp_path: Path) -> None:
    folder = latents(tmp_path, {"digest": "a", "shape": SMALL, "mask": 0.0}, {"digest": "b", "shape": SMALL})
    records = [caption("a"), caption("b")]
    for minimum in (0.0, 0.25):
        examples, _ = read_examples(records, folder, [{"repeats": 1, "mask_minimum": minimum}])
        ((batch,),) = [list(batches(folder, examples)[0](0))]
        assert batch.mask is not None
        assert batch.mask.shape == (2, 1, 4, 4)
        assert {float(mask.mean()) for mask in batch.mask} == {minimum, 1.0}
    examples, _ = read_examples(records[1:], folder, [{"repeats": 1}])
    ((batch,),) = [list(batches(folder, examples)[0](0))]
    assert batch.mask is None


def test_weights_decide_the_order(tmp_path: Path) -> None:
    folder = latents(tmp_path, *({"digest": name, "shape": SMALL} for name in "abcd"))
    records = [caption("a"), *(caption(name, 1) for name in "bcd")]
    spec = [{"repeats": 1, "weight": 1.0}, {"repeats": 1, "weight": 1.0}]
    examples, _ = read_examples(records, folder, spec)
    sampler = sampler_of(examples, spec, batch=2, seed=0)
    assert isinstance(sampler, WeightedSampler)
    seen = Counter(examples[index].dataset for step in range(60) for index in sampler.batch(step))
    assert abs(seen[0] - seen[1]) <= 2
    assert isinstance(sampler_of(examples, [{"repeats": 1}] * 2, batch=2, seed=0), Sampler)


def test_the_digest_of_the_data_knows_all_captions(tmp_path: Path) -> None:
    folder = latents(tmp_path, {"digest": "a", "shape": SMALL})
    assert data_digest([caption("a")], [folder]) != data_digest([caption("a", 0, "other")], [folder])
