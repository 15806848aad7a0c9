"""The train step: what it writes, and that stopping it changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdbuild.errors import DataError, RecipeError, StepError
from sdbuild.families.contract import FlowSchedule, NoiseSchedule
from sdbuild.recipe.train import deciding
from sdbuild.steps import train
from sdbuild.steps.contract import Inputs, Items
from sdbuild.training.examples import Batch
from sdbuild.training.objective import Objective
from sdbuild.training.precision import Precision
from tests.tiny import make_pipeline
from tests.training.material import Listener, make_inputs, make_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), base, holdout=2)


def build(spec: Mapping[str, Any], inputs: Inputs, listener: Listener, out: str = "out") -> Items:
    folder = listener.folder / out
    folder.mkdir(parents=True)
    return train.run(spec, inputs, folder, listener)


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file but for the time that metrics tell."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "metrics.json":
                data = json.dumps(json.loads(data) | {"seconds": 0, "memory": 0}).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def test_writes_adapter_metrics_and_losses(tmp_path: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    items = build(make_spec(schedule="cosine", warmup=2), inputs, listener)
    out = tmp_path / "out"
    assert items == Items(total=6, computed=6)
    assert sorted(digests(out)) == [
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/tiny.safetensors",
        "loss.csv",
        "metrics.json",
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"train_loss", "validation_loss", "steps", "pictures", "holdout", "seconds", "memory"} <= metrics.keys()
    assert (metrics["steps"], metrics["pictures"], metrics["holdout"]) == (6, 4, 2)
    assert metrics["validation_loss"]["base"] != metrics["validation_loss"]["adapter"]
    lines = (out / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert [float(line.split(",")[2]) for line in lines[1:4]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert listener.told[0] == (0, {})
    assert listener.told[-1][0] == 6
    assert listener.told[-1][1]["loss"] == pytest.approx(sum(float(line.split(",")[1]) for line in lines[1:]) / 6)


def test_header_says_what_the_adapter_is_and_was_made_of(tmp_path: Path, inputs: Inputs) -> None:
    build(make_spec(method={"alpha": 1.0}), inputs, Listener(tmp_path))
    with safe_open(tmp_path / "out/adapter/tiny.safetensors", framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.title"] == "tiny"
    assert header["modelspec.resolution"] == "64x64"
    assert header["modelspec.prediction_type"] == "epsilon"
    assert len(header["modelspec.hash_sha256"]) == 66
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_steps"]) == ("2", "1.0", "6")
    assert json.loads(header["ss_tag_frequency"])["1_dataset0"]["picture number 3"] == 1
    assert header["sdbuild.recipe"] == "tiny"
    spec = make_spec(method={"alpha": 1.0})
    assert json.loads(header["sdbuild.spec"]) == {**spec, "train": deciding(spec["train"])}
    assert (header["sdbuild.pictures"], header["sdbuild.holdout"]) == ("4", "2")
    assert header["sdbuild.base_digest"] == "0" * 64
    assert {"sdbuild.recipe_digest", "sdbuild.data_digest", "sdbuild.torch_version"} <= header.keys()
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {1.0}
    assert all(name.startswith("lora_unet_") for name in tensors)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"save_precision": "float16"}, r"save_precision float16 turns .* numbers to zero; \d+ of \d+ layers are off"),
        ({"save_precision": "bfloat16"}, None),
        ({}, None),
        ({"kind": "loha", "save_precision": "float16"}, r"than 1%, lora_unet_.*hada_w2_a by .*; write float32 or b"),
    ],
)
def test_what_half_precision_loses_is_told(
    method: dict[str, Any], said: str | None, tmp_path: Path, inputs: Inputs
) -> None:
    """By a learning rate that leaves second factors at numbers which float16 has no digits for."""
    listener = Listener(tmp_path)
    spec = make_spec(learning_rate=2e-9, steps=2)
    spec["method"] = {"kind": "lora", "rank": 2, "targets": "default"} | method
    build(spec, inputs, listener)
    figures = json.loads((tmp_path / "out/metrics.json").read_text()).get("half_precision")
    words = [word for word in listener.warnings if "save_precision" in word]
    assert len(words) == (said is not None)
    assert said is None or re.search(said, words[0])
    if method.get("save_precision") == "float16":
        assert figures["zeros"] > 100
        assert figures["layers"] > 10
        assert figures["relative_error"] > 0.5
    elif method:
        assert (figures["zeros"], figures["layers"], figures["kept_in_float32"]) == (0, 0, 0)
        assert 0 < figures["relative_error"] < 0.005
    else:
        assert figures is None


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, inputs: Inputs) -> None:
    spec = make_spec(caption_dropout=0.5, method={"dropout": 0.2})
    build(spec, inputs, Listener(tmp_path / "a"))
    torch.rand(7)
    build(spec, inputs, Listener(tmp_path / "b"))
    assert digests(tmp_path / "a/out") == digests(tmp_path / "b/out")


def test_the_seed_changes_the_adapter_and_global_generators_stay(tmp_path: Path, inputs: Inputs) -> None:
    before = torch.random.get_rng_state()
    build(make_spec(seed=1), inputs, Listener(tmp_path / "a"))
    build(make_spec(seed=2), inputs, Listener(tmp_path / "b"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert digests(tmp_path / "a/out") != digests(tmp_path / "b/out")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("error", [RuntimeError("stopped"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_resumed_training_gives_the_bytes_of_one_never_stopped(
    tmp_path: Path, inputs: Inputs, optimizer: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    spec = make_spec(
        optimizer=optimizer, schedule="linear", caption_dropout=0.3, method={"dropout": 0.1}, checkpoint_every=2
    )
    build(spec, inputs, Listener(tmp_path / "whole"))
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    for number, stop in enumerate([3, 5, 5]):
        with pytest.raises(type(error)):
            build(spec, inputs, Listener(tmp_path / "stopped", stop_at=stop, error=error), f"out{number}")
    items = build(spec, inputs, Listener(tmp_path / "stopped"))
    assert 0 < items.computed < 6
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")


def test_ctrl_c_saves_the_very_step(tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    spec = make_spec(checkpoint_every=100)
    with pytest.raises(KeyboardInterrupt):
        build(spec, inputs, Listener(tmp_path, stop_at=5, error=KeyboardInterrupt()), "first")
    assert build(spec, inputs, Listener(tmp_path)).computed == 1


def test_a_finished_training_is_not_repeated(tmp_path: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    build(make_spec(), inputs, listener, "first")
    assert build(make_spec(), inputs, listener, "second") == Items(total=6, computed=0)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_another_spec_starts_anew(tmp_path: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    build(make_spec(), inputs, listener, "first")
    assert build(make_spec(learning_rate=2e-2), inputs, listener, "second").computed == 6
    assert listener.warnings == []


def test_what_changes_no_step_may_change_on_the_way(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a training that ran out of memory, or out of patience, goes on with the remedy."""
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    listener = Listener(tmp_path, stop_at=3)
    with pytest.raises(RuntimeError):
        build(make_spec(), inputs, listener, "first")
    listener.stop_at = None
    spec = make_spec(checkpoint_every=2, gradient_checkpointing=True, rising_loss=None)
    assert build(spec, inputs, listener, "second").computed == 3
    build(make_spec(), inputs, Listener(tmp_path / "whole"))
    found, expected = (
        load_file(folder / "adapter/tiny.safetensors") for folder in (tmp_path / "second", tmp_path / "whole/out")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_data_start_anew(tmp_path: Path, base: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    build(make_spec(), inputs, listener, "first")
    other = make_inputs(tmp_path / "inputs", base, holdout=1)
    assert build(make_spec(), other, listener, "second").computed == 6


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    listener = Listener(tmp_path)
    build(make_spec(), inputs, listener, "first")
    newest, before = sorted(listener.scratch.glob("step-*"), reverse=True)
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    assert build(make_spec(), inputs, listener, "second").computed == 1
    assert listener.warnings == [
        "step-000000006.safetensors is damaged and is not used; going on from the checkpoint before it"
    ]
    before.write_bytes(before.read_bytes()[:100])
    (listener.scratch / newest.name).write_bytes(b"")
    assert build(make_spec(), inputs, listener, "third").computed == 6
    assert digests(tmp_path / "first") == digests(tmp_path / "third")


def test_without_holdout_there_is_no_validation(tmp_path: Path, base: Path) -> None:
    build(make_spec(steps=1), make_inputs(tmp_path / "inputs", base), Listener(tmp_path))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["validation_loss"] is None


def test_several_shapes_and_bfloat16(tmp_path: Path, base: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs", base, shapes=[(4, 8, 8), (4, 16, 8)], holdout=2)
    listener = Listener(tmp_path)
    build(make_spec(precision="bfloat16", batch=4), inputs, listener)
    tensors = load_file(tmp_path / "out/adapter/tiny.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_up" in name)
    small = "2 of 2 buckets have fewer pictures in a pass than train.batch 4 (64×64 with 2); "
    small += "batches there hold a picture several times"
    assert [said for said in listener.warnings if not said.startswith("this processor")] == [small]


def test_the_text_encoder_trains_too(tmp_path: Path, base: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs", base, holdout=1, text=False)
    build(make_spec(method={"text_encoder": True}, caption_dropout=0.2), inputs, Listener(tmp_path))
    tensors = load_file(tmp_path / "out/adapter/tiny.safetensors")
    trained = [name for name in tensors if name.startswith("lora_te_text_model_") and name.endswith("lora_up.weight")]
    assert len(trained) == 12
    assert all(tensors[name].abs().max() > 0 for name in trained)


def test_a_loss_that_is_not_finite_names_step_pictures_and_setting(tmp_path: Path, base: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs", base, broken=3)
    with pytest.raises(
        StepError, match=r"(?s)step \d of 6: the loss is nan for 'picture number 3' \(\w{12}\)\nlower train"
    ):
        build(make_spec(), inputs, Listener(tmp_path))
    for path in (tmp_path / "scratch").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_what_predicts_nothing_is_no_measure_of_a_new_prediction(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "nothing_of", lambda *_: lambda step: 1e-3)
    assert build(make_spec(steps=11, prediction="x0"), inputs, Listener(tmp_path / "other")).computed == 11
    with pytest.raises(StepError, match="times that of predicting nothing at all"):
        build(make_spec(steps=11), inputs, Listener(tmp_path / "own"))


def test_all_pictures_held_out(tmp_path: Path, base: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs", base, pictures=2, holdout=2)
    with pytest.raises(DataError, match="nothing to train on: all pictures are held out; lower `holdout`"):
        build(make_spec(), inputs, Listener(tmp_path))


def test_a_target_that_matches_nothing(tmp_path: Path, inputs: Inputs) -> None:
    with pytest.raises(RecipeError, match=r"method.targets: 'to_x' matches no linear layer .* \(did you mean to_"):
        build(make_spec(method={"targets": ["to_x"]}), inputs, Listener(tmp_path))


def test_a_caption_without_item(tmp_path: Path, base: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs", base)
    index = tmp_path / "inputs/text/index.jsonl"
    index.write_text("".join(f"{line}\n" for line in index.read_text().splitlines() if "number 3" not in line))
    with pytest.raises(StepError, match="no text item for 'picture number 3'; build the text step again"):
        build(make_spec(), inputs, Listener(tmp_path))


EVERYTHING: dict[str, Any] = {
    "optimizer": "adamw-schedule-free",
    "accumulate": 2,
    "lora_plus_ratio": 4.0,
    "prediction": "v",
    "loss": {"kind": "huber"},
    "weighting": {"kind": "debiased"},
    "timesteps": {"kind": "logit-normal", "shift": 2.0},
    "noise": {"pyramid": 0.3, "perturbation": 0.1, "zero_terminal_snr": True},
}


def test_another_objective_and_optimizer_are_resumed_and_told(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    spec = make_spec(**EVERYTHING)
    whole = Listener(tmp_path / "whole")
    build(spec, inputs, whole)
    assert whole.warnings == ["the base predicts epsilon and learns to predict v; samplers must be set to v"]
    with pytest.raises(RuntimeError):
        build(spec, inputs, Listener(tmp_path / "stopped", stop_at=4), "first")
    assert build(spec, inputs, Listener(tmp_path / "stopped")).computed == 2
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")
    with safe_open(tmp_path / "whole/out/adapter/tiny.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.prediction_type"] == "v"
    told = ("zero_terminal_snr", "multires_noise_discount", "ip_noise_gamma", "min_snr_gamma", "debiased_estimation")
    assert [header[f"ss_{name}"] for name in told] == ["True", "0.3", "0.1", "None", "True"]
    assert (header["ss_loss_type"], header["ss_huber_schedule"]) == ("huber", "snr")
    assert (header["ss_total_batch_size"], header["ss_gradient_accumulation_steps"]) == ("4", "2")


ZERO = {"noise": {"zero_terminal_snr": True}}


@pytest.mark.parametrize(
    ("flow", "settings", "problem"),
    [
        (False, ZERO, "train.noise.zero_terminal_snr: needs a denoiser that predicts v or x0"),
        (True, ZERO, "train.noise.zero_terminal_snr: flow ends in noise alone by itself; remove it"),
        (True, {"weighting": {"kind": "min-snr"}}, "train.weighting: min-snr is defined by noise schedules"),
        (True, {"prediction": "v"}, "train.prediction: this base is a flow and predicts nothing else; remove it"),
    ],
)
def test_what_the_base_does_not_allow_is_said_before_it_is_loaded(
    tmp_path: Path, inputs: Inputs, flow: bool, settings: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "assemble", None)
    if flow:
        schedule = FlowSchedule(timesteps=1000, density={})
        monkeypatch.setattr("sdbuild.families.diffusion.DiffusionFamily.noise_schedule", lambda self: schedule)
    with pytest.raises(RecipeError, match=problem):
        build(make_spec(**settings), inputs, Listener(tmp_path))


def test_accumulated_batches_are_one_large_batch(tmp_path: Path, inputs: Inputs) -> None:
    found = []
    for batch, accumulate in ((4, 1), (1, 4)):
        folder = tmp_path / str(batch)
        spec = make_spec(batch=batch, accumulate=accumulate, optimizer="sgd", steps=3, caption_dropout=0.5)
        build(spec, inputs, Listener(folder))
        found.append(load_file(folder / "out/adapter/tiny.safetensors"))
    large, small = found
    assert all(torch.allclose(small[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in large.items())
    assert any(not torch.equal(small[name], tensor) for name, tensor in large.items())


def test_the_average_is_the_adapter(tmp_path: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    build(make_spec(ema={"decay": 0.5}), inputs, listener)
    build(make_spec(), inputs, Listener(tmp_path / "last"))
    saved = load_file(listener.scratch / "step-000000006.safetensors")
    last = load_file(tmp_path / "last/out/adapter/pytorch_lora_weights.safetensors")
    for name, tensor in load_file(tmp_path / "out/adapter/pytorch_lora_weights.safetensors").items():
        own = name.removeprefix("unet.")
        assert torch.equal(saved[f"average/unet.{own}"], tensor)
        assert torch.equal(saved[f"adapter/unet.{own}"], last[name])
    means = [json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("out", "last/out")]
    assert means[0]["train_loss"] == means[1]["train_loss"]
    assert means[0]["validation_loss"]["base"] == means[1]["validation_loss"]["base"]
    assert means[0]["validation_loss"]["adapter"] != means[1]["validation_loss"]["adapter"]


def test_validation_is_the_plain_loss_whatever_is_trained_with(tmp_path: Path, inputs: Inputs) -> None:
    settings: dict[str, Any] = {"loss": {"kind": "huber"}, "weighting": {"kind": "min-snr"}, "noise": {"offset": 0.1}}
    build(make_spec(steps=1), inputs, Listener(tmp_path / "plain"))
    build(make_spec(steps=1, **settings), inputs, Listener(tmp_path / "other"))
    plain, other = (json.loads((tmp_path / name / "out/metrics.json").read_text()) for name in ("plain", "other"))
    assert plain["validation_loss"]["base"] == other["validation_loss"]["base"]
    assert plain["train_loss"] != other["train_loss"]


def test_records_weigh_what_they_are_given() -> None:
    x, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule(alphas_cumprod=torch.linspace(0.9, 0.1, 10).double(), prediction_type="epsilon")
    objective = Objective.of(schedule, torch.device("cpu"))
    model: Any = SimpleNamespace(denoiser=SimpleNamespace(predict=lambda noisy, timesteps, condition: noisy))
    losses_of = train._losses(model, objective, Precision(compute="float32"), torch.device("cpu"))
    batch = Batch(x=x, noise=noise, shown=noise, timesteps=torch.tensor([1, 5, 9]), condition={})
    weighed = replace(batch, weights=torch.tensor([1.0, 0.25, 0.0]))
    assert losses_of(weighed).tolist() == pytest.approx((losses_of(batch) * torch.tensor([1, 0.25, 0])).tolist())


PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from sdbuild.steps import train
from sdbuild.steps.contract import Inputs
from tests.training.material import Listener
import sdbuild.training.loop as loop
import sdbuild.training.checkpoint as checkpoint
loop.REPORT_SECONDS, checkpoint.SHARE = 0, 1e9
spec, folders, folder, stops = json.loads(sys.argv[1])
inputs = Inputs(**{name: Path(path) for name, path in folders.items()})

class Deadly(Listener):
    def progress(self, done, total, unit, **figures):
        if done == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

for stop in stops:
    if os.fork() == 0:
        out = Path(folder) / f"out{stop}"
        out.mkdir(parents=True)
        train.run(spec, inputs, out, Deadly(Path(folder), stop_at=stop))
        os._exit(0)
    print(-os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_killed_at_several_steps_the_bytes_are_the_same(tmp_path: Path, inputs: Inputs) -> None:
    spec = make_spec(checkpoint_every=2)
    build(spec, inputs, Listener(tmp_path / "whole"))
    folders = {name: str(getattr(inputs, name)) for name in ("project", "base", "captions", "latents", "text")}
    argument = json.dumps([spec, folders, str(tmp_path / "killed"), [1, 3, 5]])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.split() == [str(int(signal.SIGKILL))] * 3, run.stderr
    assert build(spec, inputs, Listener(tmp_path / "killed")).computed == 2
    assert digests(tmp_path / "killed/out") == digests(tmp_path / "whole/out")
