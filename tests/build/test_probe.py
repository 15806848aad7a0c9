"""`sdbuild probe`, and builds that cannot fit, through the command line."""

from __future__ import annotations

import json
import re

from tests.conftest import Work


def test_probe_predicts_and_measures(work: Work) -> None:
    along = {"steps": 12, "validate_every": 12, "early_stop": {}, "save_every": 3, "save_most": 3}
    work.recipe(train=along, sample={"every": 6})
    before = {path for path in work.root.rglob("*") if ".sdbuild" not in path.parts and ".dvc" not in path.parts}
    found = json.loads(work.sdbuild("probe", "cat", "--json").out)
    assert found["largest"]["records"] == 2
    assert found["measured"].keys() == {"memory", "loading", "seconds"}
    assert found["measured"]["seconds"] > 0
    assert found["weights"]
    disk = {row["step"]: row for row in found["disk"]}
    assert list(disk) == ["latents", "text", "adapter", "adapters", "checkpoints", "samples"]
    assert (disk["adapters"]["count"], disk["adapters"]["out"]) == (2, disk["adapter"]["out"]), "of step 6 alone"
    assert disk["samples"]["count"] == 3
    after = {path for path in work.root.rglob("*") if ".sdbuild" not in path.parts and ".dvc" not in path.parts}
    assert after == before, "nothing is built"


def test_probe_needs_no_weights(work: Work) -> None:
    for file in (work.root / "base").rglob("*.safetensors"):
        file.unlink()
    work.recipe(matrix={"method.rank": [1, 2]})
    refused = work.sdbuild("probe", "cat", code=3)
    assert refused.err == "cat has 2 variants (cat@rank-1, cat@rank-2); probe one of them\n"
    out = work.sdbuild("probe", "cat@rank-2", "--device", "cuda").out
    assert "cat@rank-2: 3,072 trained parameters; the largest batch is 2 pictures of" in out
    assert "predicted for a GPU, which this machine has not" in out
    assert re.search(r"^memory, GB +base +adapter", out, re.MULTILINE)
    assert re.search(r"^this recipe +L +0\.0\d$", out, re.MULTILINE), "letters in place of coloured squares"
    assert "full fine-tune, bfloat16, adamw-8bit, checkpointing" in out
    assert re.search(r"^checkpoints \(while it trains\)", out, re.MULTILINE)
    assert "nothing was measured" in out
