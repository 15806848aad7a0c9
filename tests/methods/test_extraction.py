"""Low-rank extraction: the nearest LoRA to what was trained, and that it draws the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdbuild.errors import StepError
from sdbuild.methods.extraction import factorise
from sdbuild.methods.targets import PRESETS
from sdbuild.steps import extract
from tests.methods.test_weights import FAMILIES, Bench, folders
from tests.steps.stage import Stage

__all__ = ["folders"]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 5, 3, 3)])
def test_factors_are_the_nearest_of_their_rank(shape: tuple[int, ...]) -> None:
    difference = draw(*shape, seed=0)
    values = torch.linalg.svdvals(difference.flatten(1)).double().square()
    for rank in (1, 3, 100):
        found = factorise(difference, rank)
        used = min(rank, len(values))
        assert found.down.shape == (used, *shape[1:])
        assert found.up.shape == (shape[0], used, *(1 for _ in shape[2:]))
        product = (found.up.flatten(1) @ found.down.flatten(1)).reshape(shape)
        lost = float((difference - product).double().square().sum())
        assert lost == pytest.approx(float(values[used:].sum()), abs=1e-4)
        assert found.energy == pytest.approx(float(difference.double().square().sum()), rel=1e-5)
        assert found.energy - found.kept == pytest.approx(lost, abs=1e-4)


def change(bench: Bench, rank: int) -> None:
    """Add products of that rank to what LoRA adapts, and to some convolutions."""
    with torch.no_grad():
        for index, (component, network) in enumerate(bench.modules.items()):
            for path, module in network.named_modules():
                weight: Any = getattr(module, "weight", None)
                if PRESETS["default"](path, module) or path.endswith(("conv1", "conv_in")):
                    flat = weight.flatten(1)
                    up, down = draw(len(flat), rank, seed=index), draw(rank, flat.shape[1], seed=index + 1)
                    weight += (up @ down * 0.02).reshape(weight.shape)
            assert component


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_the_rank_of_what_was_trained_draws_the_same(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    bench = Bench(folders[family], {"kind": "full", "text_encoder": True})
    change(bench, rank=2)
    trained = bench.predict()
    (tensors,) = bench.adapter.export(bench.family.key_map, "mine").values()
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter/mine.safetensors", metadata={"sdbuild.recipe": "mine"})

    stage = Stage(tmp_path / "project", folders[family])
    spec = {"version": 1, "name": "mine", "rank": 2, "sides": ["denoiser", "text"]}
    _, out = stage.run(extract, spec, adapter=tmp_path / "adapter")
    figures = json.loads((out / "extract.json").read_text())
    assert figures["kept"] == pytest.approx(1, abs=1e-6)
    assert (figures["rank"], figures["outside"]) == (2, 0)
    with safe_open(out / "extracted/mine.safetensors", framework="pt") as file:
        header = file.metadata()
        assert len([name for name in file.keys() if name.endswith(".alpha")]) > 0  # noqa: SIM118
    assert header["sdbuild.recipe"] == "mine"
    assert header["modelspec.architecture"].endswith("/lora")
    assert (header["ss_network_dim"], header["ss_network_module"]) == ("2", "networks.lora")

    for name in ["pytorch_lora_weights.safetensors", *(["mine.safetensors"] if family != "sd3" else [])]:
        pipeline = bench.family.pipeline()
        pipeline.load_lora_weights(out / "extracted", weight_name=name, local_files_only=True)
        denoiser = bench.denoiser
        bench.denoiser = type(denoiser)(**{**vars(denoiser), "module": getattr(pipeline, denoiser.component)})
        bench.text = bench.family.text_of(pipeline)
        torch.testing.assert_close(bench.predict(), trained, atol=1e-4, rtol=1e-3)

    _, out = stage.run(extract, {**spec, "rank": 1}, adapter=tmp_path / "adapter")
    figures = json.loads((out / "extract.json").read_text())
    assert 0.3 < figures["kept"] < 1
    assert figures["least"]["kept"] < figures["kept"]


def test_what_was_not_trained_is_left_out_though_it_was_rounded(folders: dict[str, Path], tmp_path: Path) -> None:
    bench = Bench(folders["sd1"], {"kind": "partial", "layers": ["to_k", "norm1"], "save_precision": "float16"})
    stage = Stage(tmp_path / "project", folders["sd1"])
    spec = {"version": 1, "name": "mine", "rank": 4, "sides": ["denoiser"]}

    def export() -> None:
        (tensors,) = bench.adapter.export(bench.family.key_map, "mine").values()
        save_file(tensors, tmp_path / "mine.safetensors", metadata={"format": "pt"})

    export()
    with pytest.raises(StepError, match="differs from its base in no linear layer or convolution"):
        stage.run(extract, spec, adapter=tmp_path)
    bench.train()
    export()
    _, out = stage.run(extract, spec, adapter=tmp_path)
    figures = json.loads((out / "extract.json").read_text())
    assert figures["layers"] == sum(path.endswith("to_k") for path, _ in bench.denoiser.module.named_modules())
    assert 0 < figures["outside"] < 1
