"""Methods through the command line: each trains and draws; what it lacks is said."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import RECIPE, Work

TOKENS = [{"token": "sks", "vectors": 2, "start": "cat"}]
METHODS: dict[str, dict[str, Any]] = {
    "words": {"kind": "textual_inversion", "tokens": TOKENS},
    "pivot": {"kind": "pivotal", "tokens": TOKENS, "lora": {"kind": "lora", "rank": 2}},
    "kron": {"kind": "lokr", "rank": 2, "parts": [{"modules": "attn2.*", "rank": 1}], "module_dropout": 0.2},
    "turns": {"kind": "lora", "rank": 4, "timestep_ranks": {}, "orthogonal": True, "rank_dropout": 0.2},
    "hyper": {"kind": "hypernetwork", "dropout": 0.2, "layers": [1, 2, 1]},
}


def use(work: Work, name: str, method: dict[str, Any]) -> None:
    work.write(f"recipes/{name}.yaml", yaml.safe_dump({**RECIPE, "method": method}))


def test_methods_build(work: Work) -> None:
    (work.root / "recipes/cat.yaml").unlink()
    for name, method in METHODS.items():
        use(work, name, method)
    ran = work.doit().ran
    for name in METHODS:
        assert ran[f"{name}:train"] == 4
        assert (work.root / f"build/{name}/samples/grid.png").is_file()
    assert "words:text" not in ran
    assert "hyper:text" in ran
    assert (work.root / "build/hyper/adapter/hyper.pt").is_file()
    assert {path.name for path in (work.root / "build/pivot/adapter").rglob("*.safetensors")} == {
        *("pivot.safetensors", "pytorch_lora_weights.safetensors", "sks.safetensors")
    }


def test_words_that_no_caption_says_are_missed(work: Work) -> None:
    use(work, "cat", {"kind": "textual_inversion", "tokens": [{"token": "<toy>"}]})
    result = work.doit("cat:train", code=None)
    assert result.code != 0
    assert "method.tokens: no caption has '<toy>'; add it to a caption, e.g. as a trigger" in result.text
