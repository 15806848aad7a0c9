"""Training of the base's own weights: full and partial fine-tunes, and the checkpoints that they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sdbuild import families, methods
from sdbuild.errors import RecipeError
from sdbuild.families.contract import Family, NoiseSchedule
from sdbuild.families.sources import bring
from sdbuild.methods.contract import Adapter, Networks
from sdbuild.methods.precision_loss import precision_loss_of
from sdbuild.plan.model import Base
from sdbuild.recipe.methods import method_of
from sdbuild.steps.model import Trained, apply, networks
from tests.steps.test_train import build, digests
from tests.tiny import make_pipeline
from tests.training.material import Listener, make_inputs, make_spec

ROWS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "dreambooth": {"kind": "dreambooth", "prior": {"from": "prediction", "prompt": "a cat"}},
    "full text": {"kind": "full", "text_encoder": True},
    "partial": {"kind": "partial", "layers": ["to_k", "norm*", "mid_block"]},
}
FAMILIES = ("sd1", "sdxl", "sd3")
CELLS = [(family, row) for family in FAMILIES for row in ROWS if row in ("dreambooth", "full text") or family != "sd3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_pipeline(root / name, family=name, t5=False) for name in FAMILIES}


class Bench:
    """A base whose weights are trained, and fixed inputs to look at it with."""

    def __init__(self, folder: Path, section: Mapping[str, Any]) -> None:
        self.family: Family = families.load(folder)
        self.method = method_of({"save_precision": "float32", **section})
        self.denoiser = self.family.load_denoiser()
        self.text = self.family.load_text()
        self.modules: dict[Any, nn.Module] = {self.denoiser.component: self.denoiser.module, **self.text.modules}
        self.before = self.predict()
        self.weights = {name: tensor.clone() for name, tensor in self.tensors().items()}
        base: Networks = networks(self.method, self.family, self.modules, self.text)
        self.adapter: Adapter = methods.load(self.method.kind).inject(base, self.method, seed=0)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, module in self.modules.items() for key, t in module.state_dict().items()}

    def train(self) -> list[float]:
        optimizer = torch.optim.SGD([parameter for _, parameter in self.adapter.parameters()], lr=1e-2)
        losses = []
        for _ in range(3):
            loss = (self._predict() - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    @torch.no_grad()
    def predict(self) -> Tensor:
        return self._predict()

    def _predict(self) -> Tensor:
        channels = 16 if self.family.name == "sd3" else 4
        noisy = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        pair = [self.text.tokenize(text) for text in ("a cat", "")]
        seen = self.text.condition({name: torch.stack([each[name] for each in pair]) for name in pair[0]})
        seen["geometry"] = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
        return self.denoiser.predict(noisy, torch.tensor([3, 700]), seen)


@pytest.fixture(params=CELLS, ids=lambda cell: " ".join(cell))
def bench(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Bench:
    family, row = request.param
    return Bench(folders[family], ROWS[row])


def test_only_what_is_named_is_trained_and_the_base_comes_back(bench: Bench) -> None:
    assert torch.equal(bench.predict(), bench.before)
    names = [name for name, _ in bench.adapter.parameters()]
    assert names == sorted(names) == list(bench.adapter.state())
    losses = bench.train()
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in bench.tensors().items() if not torch.equal(tensor, bench.weights[name])}
    assert changed
    assert changed <= set(names)
    sides = {name.partition(".")[0] for name in changed}
    assert sides == ({*bench.modules} if bench.method.model_dump()["text_encoder"] else {bench.denoiser.component})
    if bench.method.kind == "partial":
        assert not any("to_q" in name and "mid_block" not in name for name in names)
        assert any("norm" in name for name in names)
    else:
        wanted = dict(bench.denoiser.module.named_parameters())
        assert {f"{bench.denoiser.component}.{name}" for name in wanted} <= set(names)

    full, state = bench.predict(), {name: tensor.clone() for name, tensor in bench.adapter.state().items()}
    with bench.adapter.disabled():
        assert torch.equal(bench.predict(), bench.before)
    with pytest.raises(KeyboardInterrupt), bench.adapter.disabled():
        raise KeyboardInterrupt
    assert torch.equal(bench.predict(), full)
    before = bench._predict().square().sum()  # a graph, and then the base in between
    with bench.adapter.disabled():
        assert torch.equal(bench.predict(), bench.before)
    before.backward()  # type: ignore[no-untyped-call]
    bench.adapter.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)
    bench.adapter.set_strength(0.5)
    half = bench.predict()
    assert 0 < (half - bench.before).norm() < (full - bench.before).norm()
    assert 0 < (half - full).norm() < (full - bench.before).norm()
    bench.adapter.set_strength(1)
    assert torch.equal(bench.predict(), full)

    other = Bench(bench.family.folder, bench.method.model_dump(by_alias=True))
    other.adapter.load_state(state)
    assert torch.equal(other.predict(), full)
    with pytest.raises(ValueError, match="not this adapter's weights"):
        other.adapter.load_state(dict(list(state.items())[1:]))


def test_a_checkpoint_holds_the_whole_base(bench: Bench, tmp_path: Path) -> None:
    bench.train()
    full = bench.predict()
    (tensors,) = bench.adapter.export(bench.family.key_map, "mine").values()
    save_file(tensors, tmp_path / "mine.safetensors")
    pipeline = bench.family.pipeline()
    strength = apply(pipeline, bench.family, Trained(method=bench.method, folder=tmp_path, name="mine"))
    denoiser = bench.denoiser
    bench.denoiser = type(denoiser)(**{**vars(denoiser), "module": getattr(pipeline, denoiser.component)})
    bench.text = bench.family.text_of(pipeline)
    assert torch.equal(bench.predict(), full)
    strength.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)
    strength.set_strength(0.5)
    assert 0 < (bench.predict() - full).norm() < (full - bench.before).norm()
    strength.set_strength(1)
    assert torch.equal(bench.predict(), full)

    own: dict[Any, nn.Module] = {**bench.modules}
    own["vae"] = pipeline.vae
    again = families.load(bring(Base(model="mine.safetensors", config=str(bench.family.folder)), tmp_path))
    theirs: dict[Any, nn.Module] = {denoiser.component: again.load_denoiser().module, **again.load_text().modules}
    theirs["vae"] = again.load_vae().module
    assert_same_weights(theirs, own)

    found: Any = diffusers
    if bench.family.name == "sd1":
        whole = found.StableDiffusionPipeline.from_single_file(
            tmp_path / "mine.safetensors", config=str(bench.family.folder), local_files_only=True
        )
        assert_same_weights({name: getattr(whole, name) for name in own}, own)
    else:  # diffusers tells their text encoders apart by width, which is the same here
        for name in (denoiser.component, "vae"):
            cls = getattr(found, type(own[name]).__name__)
            one = cls.from_single_file(
                tmp_path / "mine.safetensors", config=str(bench.family.folder), subfolder=name, local_files_only=True
            )
            assert_same_weights({name: one}, {name: own[name]})


def assert_same_weights(found: Mapping[str, nn.Module], expected: Mapping[str, nn.Module]) -> None:
    assert found.keys() == expected.keys()
    for name, module in expected.items():
        states = module.state_dict(), found[name].state_dict()
        assert states[0].keys() == states[1].keys()
        assert not [key for key, tensor in states[0].items() if not torch.equal(tensor, states[1][key])], name


def test_half_precision_halves_the_file_and_keeps_what_it_cannot_hold(folders: dict[str, Path]) -> None:
    bench = Bench(folders["sd1"], {"kind": "full", "save_precision": "float16"})
    with torch.no_grad():
        dict(bench.adapter.parameters())["unet.conv_out.bias"].fill_(1e6)
    (tensors,) = bench.adapter.export(bench.family.key_map, "mine").values()
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert wide == {"model.diffusion_model.out.2.bias"}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in wide} == {torch.float16}
    precision_loss = precision_loss_of(bench.adapter)
    assert precision_loss is not None
    assert (precision_loss.kept, precision_loss.harmed) == (1, set())
    assert str(precision_loss.told()).startswith(
        "method.save_precision float16 cannot hold 1 tensor whose numbers are too large, which stay float32; write"
    )


def test_layers_that_are_not_there_are_told(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"method.layers: 'to_z' matches no module with weights .*did you mean to_"):
        Bench(folders["sd1"], {"kind": "partial", "layers": ["to_k", "to_z"]})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    folders: dict[str, Path], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(tmp_path / "inputs", folders["sd1"], holdout=1)
    spec = make_spec(precision=precision, gradient_checkpointing=True, ema={"decay": 0.5}, checkpoint_every=2)
    spec["method"] = {"kind": "full"}
    build(spec, inputs, Listener(tmp_path / "whole"))
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    with pytest.raises(RuntimeError):
        build(spec, inputs, Listener(tmp_path / "stopped", stop_at=3, error=RuntimeError("stopped")), "out0")
    items = build(spec, inputs, Listener(tmp_path / "stopped"))
    assert 0 < items.computed < 6
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")
    file = tmp_path / "whole/out/adapter/tiny.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-v1"
    assert header["sdbuild.recipe"] == "tiny"
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiny.safetensors"]


@pytest.mark.parametrize(
    ("family", "scheduler", "train", "expected"),
    [
        ("sdxl", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}, {"v_pred", "ztsnr"}),
        ("sdxl", {"prediction_type": "v_prediction"}, {}, {"v_pred"}),
        ("sdxl", {}, {"prediction": "v", "noise": {"zero_terminal_snr": True}}, {"v_pred", "ztsnr"}),
        ("sdxl", {}, {}, set()),
        ("sd1", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}, {"v_pred", "ztsnr"}),
    ],
)
def test_a_checkpoint_says_what_it_predicts(
    family: str, scheduler: dict[str, Any], train: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    """By the tensors that ComfyUI looks for, so that it, and a second recipe, takes it as it was trained."""
    base = make_pipeline(tmp_path / "base", family=family, scheduler=scheduler)
    inputs = make_inputs(tmp_path / "inputs", base, text=False)
    spec = make_spec(steps=1, **train)
    spec["method"] = {"kind": "full", "text_encoder": True}
    build(spec, inputs, Listener(tmp_path))
    file = tmp_path / "out/adapter/tiny.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert {name for name in opened.keys() if "." not in name} == expected  # noqa: SIM118
        assert all(opened.get_tensor(name).numel() == 0 for name in expected)
        assert opened.metadata()["modelspec.prediction_type"] == ("v" if expected else "epsilon")

    again = families.load(bring(Base(model=str(file.relative_to(tmp_path)), config="base"), tmp_path))
    schedule = again.noise_schedule()
    assert isinstance(schedule, NoiseSchedule)
    assert schedule.prediction_type == ("v_prediction" if expected else "epsilon")
    assert (float(schedule.alphas_cumprod[-1]) < 1e-6) == ("ztsnr" in expected)
    if family == "sd1" and expected:
        whole = diffusers.StableDiffusionPipeline.from_single_file(file, config=str(base), local_files_only=True)
        assert_same_weights({"unet": whole.unet}, {"unet": again.load_denoiser().module})
