"""The embedded base as it ships, and the program that made it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from sdbuild.recipe.places import BASES
from tools.emoji64 import loop, pictures, sampling, text, unet, vae

BASE = BASES / "emoji-64"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return text.load_tokenizer(BASE / "tokenizer")


@pytest.mark.parametrize("prompt", ["cat face", "3D RENDER of a rocket", "Zürich, 日本 & Ωmega 🚀 x²", "\t", "don't"])
def test_tokenizer_encodes_any_text(tokenizer: CLIPTokenizer, prompt: str) -> None:
    numbers = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(numbers[1:-1]).replace(" ", "") == prompt.lower().replace(" ", "").strip()
    assert numbers.count(tokenizer.unk_token_id) == 1  # only the end, which is also what unknown would be


def test_tokenizer_pads_and_cuts(tokenizer: CLIPTokenizer) -> None:
    numbers = text.tokens(tokenizer, ["cat", "cat " * 100])
    assert numbers.shape == (2, text.MAX_LENGTH)
    assert int(numbers[1, -1]) == tokenizer.eos_token_id


def test_base_draws() -> None:
    pipe = sampling.load(BASE)
    latents = sampling.sample(pipe, ["cat face", "rocket"])
    drawn = sampling.decode(pipe, latents)
    assert drawn.shape == (2, 3, 64, 64)
    assert torch.isfinite(drawn).all()
    assert float(drawn.std()) > 0.1


def test_base_is_small_and_whole() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 24_000_000
    index = json.loads((BASE / "model_index.json").read_text(encoding="utf-8"))
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


def test_normalising_keeps_reconstructions() -> None:
    torch.manual_seed(0)
    net = vae.build().eval()
    batch = torch.rand(8, 3, 64, 64) * 2 - 1
    before = vae.reconstruct(net, batch)
    vae.normalise(net, batch)
    scaled = vae.encode(net, batch) * vae.SCALING_FACTOR
    assert torch.allclose(vae.reconstruct(net, batch), before, atol=1e-4)
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-3)
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-3)


def test_training_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = loop.Plan(steps=6, batch=2, rate=0.1, warmup=2, save_every=2)

    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 3)
        average = loop.Average(net, 0.9)

        def loss_of(step: int) -> tuple[torch.Tensor, loop.Metrics]:
            if step == stop_at:
                raise KeyboardInterrupt
            return net(torch.randn(2, 3, generator=loop.generator(0, step))).square().mean(), {}

        loop.train(
            plan=plan, folder=folder, module=net, optimizer=torch.optim.AdamW(net.parameters()), average=average,
            loss_of=loss_of, evaluate=lambda step: {}, evaluate_every=100,
        )  # fmt: skip
        return {**net.state_dict(), **{f"average.{name}": value for name, value in average.state().items()}}

    straight = run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=5)
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_batches_are_shuffled_epochs() -> None:
    plan = loop.Plan(steps=10, batch=3, rate=1)
    pool = torch.arange(10, 17)
    seen = torch.cat([loop.batch_indices(pool, plan, step) for step in range(7)])
    assert sorted(seen[:7].tolist()) == sorted(seen[7:14].tolist()) == pool.tolist()


def emoji_folder(folder: Path) -> Path:
    folder.mkdir()
    rows = []
    for number, name in enumerate(("red square", "green square", "blue square", "grey square")):
        pixels = np.full((64, 64, 4), 255, np.uint8)
        pixels[16:48, 16:48, :3] = number * 60
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"file": f"{number}.png", "caption": name, "alias": name, "category": "c", "subcategory": "s"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_unet_trains(tmp_path: Path, tokenizer: CLIPTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    noto = pictures.load(emoji_folder(tmp_path / "emoji"))
    held = pictures.Pictures(**{**vars(noto), "held_out": [False, False, False, True]})
    latents = unet.encode_all(vae.load_frozen(BASE / "vae", tmp_path), held)
    plan = loop.Plan(steps=2, batch=2, rate=1e-3)
    unet.train_unet(noto=held, latents=latents, tokenizer=tokenizer, folder=tmp_path / "unet", plan=plan)
    assert "held_out_mse" in capsys.readouterr().out
    _, steps = unet.load_trained(tmp_path / "unet", tokenizer)
    assert steps == 2


def test_caption_variants() -> None:
    noto = pictures.Pictures(
        pixels=torch.zeros(1, 3, 64, 64), files=["a"], captions=["cat face"], aliases=["cat"], categories=["animals"],
        subcategories=["animal mammal"], held_out=[False],
    )  # fmt: skip
    draws = {0.05: "", 0.15: "animal mammal, cat face", 0.2: "animals, animal mammal, cat face", 0.3: "cat"}
    assert {kind: text.caption_variant(noto, 0, [kind, 0.5, 0.0]) for kind in draws} == draws
    assert text.caption_variant(noto, 0, [0.9, 0.1, 0.0]) == "a cat face"


def test_nearest_and_hits() -> None:
    references = torch.arange(3.0).reshape(3, 1)
    noto = pictures.Pictures(
        pixels=torch.zeros(3, 3, 64, 64), files=["a"] * 3, captions=["a"] * 3, aliases=["a"] * 3, categories=["a"] * 3,
        subcategories=["x", "x", "y"], held_out=[False] * 3,
    )  # fmt: skip
    found = sampling.nearest(torch.tensor([[0.9], [1.1], [1.9]]), references)
    assert found.tolist() == [1, 1, 2]
    hits = sampling.hits(noto, torch.arange(3), found)
    assert hits.subcategory == 1
    assert hits.exact == pytest.approx(2 / 3)
