"""What `check` says of a recipe and its base is what a build would find, before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdbuild.cli import main
from tests.conftest import Work
from tests.tiny import make_lora, make_pipeline


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    return make_lora(tmp_path_factory.mktemp("lora"), template / "base", text=True)


def surplus(lora: Path, target: Path, old: str, new: str) -> None:
    """Write a LoRA with a layer that its base does not have."""
    from safetensors.torch import load_file, save_file

    state = load_file(lora)
    state |= {key.replace(old, new): tensor.clone() for key, tensor in state.items() if old in key}
    target.parent.mkdir(exist_ok=True)
    save_file(state, target)


def test_before_anything_is_built(
    work: Work, lora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work.root)
    work.write("loras/right.safetensors", lora.read_bytes())
    work.write("loras/short.safetensors", lora.read_bytes()[:99])
    surplus(lora, work.root / "loras/text.safetensors", "layers.1.", "layers.99.")
    surplus(lora, work.root / "loras/unet.safetensors", "down_blocks.0.", "down_blocks.7.")
    make_pipeline(work.root / "other", family="sd2")
    make_pipeline(work.root / "flow", family="sd3")

    def sample(file: str) -> dict[str, Any]:
        return {"sample": {"adapters": [{"path": f"loras/{file}.safetensors"}], "strengths": [0]}}

    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "snr": ({"train": {"noise": {"zero_terminal_snr": True}}}, "train.noise.zero_terminal_snr: needs a denoiser"),
        "pattern": ({"method": {"targets": ["to_qq"]}}, "method.targets: 'to_qq' matches no linear layer"),
        "part": (
            {"method": {"parts": [{"modules": "attn9", "rank": 1}]}},
            "method.parts: 'attn9' matches no adapted layer",
        ),
        "layers": ({"method": {"kind": "partial", "layers": ["attn9"]}}, "method.layers: 'attn9' matches no module"),
        "half": (
            {"method": {"targets": ["to_q"], "text_encoder": True}},
            "method.text_encoder: is true, but method.targets names no module of a text encoder",
        ),
        "word": (
            {"method": {"kind": "textual_inversion", "tokens": [{"token": "a"}]}},
            "method.tokens[0].token: the base's tokenizer knows 'a'",
        ),
        "pivotal": (
            {
                "method": {"kind": "pivotal", "tokens": [{"token": "<x>"}], "lora": {"targets": ["to_qq"]}},
                "datasets": [{"path": "datasets/cats", "trigger": "<x>"}],
            },
            "method.lora.targets: 'to_qq' matches no",
        ),
        "cross": (
            {"method": {"kind": "hypernetwork"}, "base": {"model": "flow"}},
            "method.kind: hypernetwork needs cross-attention",
        ),
        "norms": (
            {"method": {"kind": "partial", "layers": ["norm1"], "extract": {"rank": 4}}},
            "method.extract: method.layers names nothing that a LoRA can adapt",
        ),
        "rank": (
            {"method": {"rank": 4096, "alpha": 4096, "orthogonal": "both"}},
            "method.rank: is 4096, but",
        ),
        "short": (sample("short"), "sample.adapters[0].path: loras/short.safetensors is damaged"),
        "too-many": (sample("text"), "sample.adapters[0].path: loras/text.safetensors: has"),
        "too-many-unet": (sample("unet"), "sample.adapters[0].path: loras/unet.safetensors: has"),
        "steps": ({"images": {"resolution": 36, "buckets": {"step": 12}}}, "images.buckets.step: must be a multiple"),
    }
    for name, (changes, _) in wrong.items():
        changes = json.loads(json.dumps(changes))
        if changes.get("method", {}).get("kind"):  # another method has none of LoRA's settings
            changes["method"] |= {"rank": None, "alpha": None}
        work.recipe(name, **changes)
        text = work.read(f"recipes/{name}.yaml").decode()
        work.write(f"recipes/{name}.yaml", text.replace("  rank: null\n", "").replace("  alpha: null\n", ""))
    work.recipe("right", **sample("right"))
    work.recipe("packed", method={"targets": ["*"], "dora": True}, train={"base_precision": "nf4"})
    work.recipe("text-alone", method={"targets": ["q_proj"], "text_encoder": True})

    assert main(["check"]) == 2

    told = capsys.readouterr()
    lines = told.err.splitlines()
    for name, (_, message) in wrong.items():
        assert any(line.startswith(f"recipes/{name}.yaml:") and message in line for line in lines), (name, told.err)
        own = [line for line in lines if line.startswith(f"recipes/{name}.yaml:")]
        assert len(own) == 1, own
        [line] = own
        assert line.split(":")[1].isdigit(), line
    for name in ("cat", "right", "packed", "text-alone"):
        assert f"recipes/{name}.yaml is right" in told.out
    assert "warning: recipes/text-alone.yaml" in told.out
    assert "nothing of it is trained" in told.out

    shutil.rmtree(work.root / ".sdbuild", ignore_errors=True)
    found = work.doit("pattern", "too-many", "snr", "cat:images", code=2)
    assert found.ran == {"cat:images": 4}, "the others stop before their first step"
    stopped = ("pattern", "too-many", "snr")
    assert {*found.err.splitlines()} == {line for line in lines if line.split(":")[0][8:-5] in stopped}


def test_a_base_that_a_library_chokes_on(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipes beside it are judged as ever."""
    monkeypatch.chdir(work.root)
    odd = make_pipeline(work.root / "odd")
    settings = json.loads((odd / "unet/config.json").read_text())
    (odd / "unet/config.json").write_text(json.dumps({**settings, "norm_num_groups": 7}))
    work.recipe("odd", base={"model": "odd"}, method={"targets": ["to_q"]})
    work.recipe("wrong", method={"targets": ["to_qq"]})
    assert main(["check"]) == 2
    told = capsys.readouterr()
    assert "recipes/odd.yaml:2: base.model: cannot be tried on its base (ValueError: num_channels" in told.out
    assert "recipes/cat.yaml is right" in told.out
    assert told.err.count("recipes/wrong.yaml") == 1


def test_what_the_disk_cannot_tell_is_a_warning(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(work.root)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    work.recipe("hub", base={"model": "stabilityai/stable-difusion-xl-base-1.0"})
    caption = {"from": "anthropic", "model": "claude"}
    work.recipe("key", datasets=[{"path": "datasets/cats", "trigger": "sks", "caption": caption}])
    work.write("datasets/cats/lost.txt", "a cat that is gone")
    (work.root / "datasets/cats/0001.txt").unlink()
    work.write("datasets/cats/0001.caption", "a cat")

    assert main(["check"]) == 0

    told = capsys.readouterr().out
    assert "is not on this machine (did you mean stabilityai/stable-diffusion-xl-base-1.0?)" in told
    assert "recipes/key.yaml: datasets[0].caption: ANTHROPIC_API_KEY is not set" in told
    assert "1 caption file belongs to no picture, so nothing reads it (datasets/cats/lost.txt)" in told
    assert main(["plan", "key"]) == 0
    told = capsys.readouterr().out
    assert "ANTHROPIC_API_KEY is not set" in told
    assert "(all 4 will be stored by then)" in told


def test_checkpoints_that_are_none(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.chdir(work.root)
    work.write("plain.ckpt", "no checkpoint")
    torch.save({"state_dict": {"a.weight": torch.zeros(1)}}, work.root / "other.ckpt")
    torch.save({"state_dict": {}, "path": Path("x")}, work.root / "code.ckpt")
    for name in ("plain", "other", "code"):
        work.recipe(name, base={"model": f"{name}.ckpt", "allow_pickle": True})
    assert main(["check", "plain", "other", "code"]) == 2
    told = capsys.readouterr().err
    assert told.count("is damaged, or holds more than tensors") == 2
    assert "other.ckpt: has no known layout" in told
