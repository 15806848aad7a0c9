"""LoRA in particular: what diffusers reads, ranks by pattern and timestep, DoRA, and what recipes may not ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from sdbuild.errors import DataError, RecipeError, StepError
from sdbuild.families.contract import Family
from sdbuild.methods.lora.files import DIFFUSERS_FILE
from sdbuild.methods.lora.ortho import OrthoLayer, smallest_values
from sdbuild.methods.lora.ranks import ranks_at
from sdbuild.recipe.methods import method_of
from sdbuild.recipe.models import Recipe
from sdbuild.steps.model import Other, Trained, apply
from tests.methods.bench import LORA, ROWS, TIMESTEPS, Bench, Drawn, base, noisy


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def family(root: Path) -> Family:
    return base("sd1", root)


def saved(bench: Bench, folder: Path, name: str = "tiny") -> Path:
    folder.mkdir(exist_ok=True)
    for file, tensors in bench.adapter.export(bench.family.key_map, name).items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / file)
    return folder


PLAIN = [
    name
    for name, row in ROWS.items()
    if row.method["kind"] == "lora" and "timesteps" not in name and row.method.get("dora_axis") != "input"
]
BOTH = [name for name in PLAIN if "both" in name]
"""Files with twice the ranks that recipes say."""


@pytest.mark.parametrize("name", [name for name in PLAIN if "dora" not in name])
def test_kohyas_file_and_diffusers_file_hold_the_same(name: str, family: Family) -> None:
    bench = Bench(family, ROWS[name].method)
    bench.train(2)
    files = bench.adapter.export(family.key_map, "tiny")
    assert list(files) == ["tiny.safetensors", DIFFUSERS_FILE]
    state, alphas = family.key_map.from_kohya(files["tiny.safetensors"])
    diffusers = files[DIFFUSERS_FILE]
    assert state.keys() == diffusers.keys()
    if "parts" not in ROWS[name].method and name not in BOTH:
        assert set(alphas.values()) == {ROWS[name].method["alpha"]}
    for key, tensor in state.items():
        module, _, factor = key.rpartition(".lora_")
        rank = len(state[f"{module}.lora_A.weight"])
        scale = alphas[module] / rank if factor.startswith("B") else 1
        assert torch.allclose(tensor * scale, diffusers[key], rtol=1e-6, atol=0)


# Of kohya's files, diffusers leaves out DoRA's lengths, and alphas of attention that are not those of the rest.
KOHYA = [name for name in PLAIN if name != "lora ranks" and "dora" not in name]


@pytest.mark.parametrize(
    ("name", "file"),
    [*((name, DIFFUSERS_FILE) for name in PLAIN), *((name, "tiny.safetensors") for name in KOHYA)],
)
def test_diffusers_reads_the_file_and_predicts_the_same(
    name: str, file: str, family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(family, ROWS[name].method)
    bench.train(3)
    saved(bench, tmp_path)
    pipeline = family.pipeline()
    caplog.clear()
    pipeline.load_lora_weights(tmp_path, weight_name=file, local_files_only=True)
    words = ("unexpected keys", "missing keys", "No LoRA keys associated to UNet")
    assert not [record for record in caplog.records if any(word in record.getMessage() for word in words)]
    loaded = sum("lora_" in name for module in (pipeline.unet, pipeline.text_encoder) for name in module.state_dict())
    assert loaded == len([key for key in bench.adapter.state() if key.endswith(".weight")])
    expected = bench.predict()
    bench.denoiser = type(bench.denoiser)(pipeline.unet)  # type: ignore[call-arg]
    bench.text = family.text_of(pipeline)
    assert torch.allclose(bench.predict(), expected, atol=1e-6)


def test_parts_have_ranks_and_alphas_of_their_own(family: Family) -> None:
    parts = [
        {"modules": "unet.*", "rank": 2},
        {"modules": "attn2.to_k", "rank": 8, "alpha": 4.0},
        {"modules": "text_encoder*", "alpha": 1.0},
    ]
    adapter = Bench(family, LORA | {"text_encoder": True, "parts": parts}).adapter
    found: dict[tuple[int, float], set[str]] = {}
    file = adapter.export(family.key_map, "tiny")["tiny.safetensors"]
    for key, tensor in file.items():
        if key.endswith("lora_down.weight"):
            size = (len(tensor), float(file[key.replace("lora_down.weight", "alpha")]))
            found.setdefault(size, set()).add(key)
    # A part without an alpha keeps the scale, which is 2 / 4 here.
    assert found.keys() == {(2, 1.0), (8, 4.0), (4, 1.0)}
    assert all("attn2_to_k" in key for key in found[8, 4.0])
    assert all(key.startswith("lora_te_") for key in found[4, 1.0])


def test_the_scale_is_stabilised_by_the_root_of_the_rank(family: Family) -> None:
    adapter = Bench(family, {"kind": "lora", "rank": 16, "alpha": 8.0, "rank_stabilised": True}).adapter
    file = adapter.export(family.key_map, "tiny")["tiny.safetensors"]
    alphas = {float(tensor) / 16 for key, tensor in file.items() if key.endswith("alpha")}
    assert alphas == {2.0}  # 8 / √16


def test_parts_that_fit_nothing_are_named(family: Family) -> None:
    parts = [{"modules": "attn3.to_k", "rank": 2}, {"modules": "text_encoder*", "rank": 2}]
    with pytest.raises(RecipeError) as error:
        Bench(family, LORA | {"parts": parts})
    first, second = str(error.value).splitlines()
    assert "method.parts: 'attn3.to_k' matches no adapted layer of this base (did you mean attn" in first
    assert "'text_encoder*' matches no adapted layer" in second


def spy(bench: Bench | Drawn, module: Any, name: str) -> list[Tensor]:
    """Note what comes out of a first factor, behind the gates."""
    seen: list[Tensor] = []
    module.lora_A[name].register_forward_hook(lambda *call: seen.append(call[2].detach()))
    bench.predict()
    return seen


def test_ranks_act_by_timestep_in_training_and_in_grids(family: Family, tmp_path: Path) -> None:
    bench = Bench(family, LORA | {"rank": 8, "timestep_ranks": {"least": 0.25}, "targets": ["to_q", "conv1"]})
    bench.train(2)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    drawn = Drawn(bench, saved(bench, tmp_path))
    expected = ranks_at(TIMESTEPS, 8, 0.25, 1.0).tolist()
    assert expected == [7, 3]
    for each, network, name in ((bench, bench.modules["unet"], "default"), (drawn, drawn.pipeline.unet, "adapter_0")):
        (out,) = spy(each, network.get_submodule(path), name)
        assert [int((picture != 0).any(dim=0).sum()) for picture in out] == expected
        (out,) = spy(each, network.get_submodule("mid_block.resnets.0.conv1"), name)
        assert [int((picture != 0).flatten(1).any(dim=1).sum()) for picture in out] == expected
    assert torch.allclose(drawn.predict(), bench.predict(), atol=1e-6)
    # A grid calls the network with one timestep for all pictures.
    with torch.no_grad():
        drawn.pipeline.unet(noisy(family), torch.tensor(999), bench.condition()["hidden"])
    (out,) = spy(bench, bench.modules["unet"].get_submodule(path), "default")
    assert len(out) == 2


def test_a_start_with_orthogonal_rows(family: Family) -> None:
    state = Bench(family, LORA | {"orthogonal": True, "targets": ["to_q", "conv1"]}).adapter.state()
    for name, tensor in state.items():
        if name.endswith("lora_A.weight"):
            rows = tensor.flatten(1)
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)) / 3, atol=1e-6)


def test_t_lora_is_that_of_its_repository(family: Family) -> None:
    """B diag(λ) M A less the same of the start, from orthogonal vectors and small values; twice the ranks in files."""
    section = LORA | {"timestep_ranks": {"least": 0.25}, "orthogonal": "both", "targets": ["to_q", "conv1"]}
    bench = Bench(family, section)
    state = bench.adapter.state()
    for name, tensor in state.items():
        if name.endswith(("lora_A.weight", "lora_B.weight")):
            vectors = tensor.flatten(1) if "lora_A" in name else tensor.flatten(1).T
            assert torch.allclose(vectors @ vectors.T, torch.eye(4), atol=1e-5)
    with pytest.raises(StepError, match="ranks depend on the timestep cannot be merged"):
        bench.adapter.merge()
    bench.train(3)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = bench.modules["unet"].get_submodule(path)
    assert isinstance(layer, OrthoLayer)
    width = len(layer.weight)
    assert torch.allclose(layer.values_start, smallest_values(width, width, 4))
    smallest_values.cache_clear()
    with torch.device("meta"):  # as memory is predicted, before the training begins
        assert not smallest_values(width, width, 4).is_meta
    assert torch.allclose(smallest_values(40, 40, 40)[0] * 40, torch.tensor(2 * 40**0.5), rtol=0.1)  # the largest
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    act = ranks_at(TIMESTEPS, 4, 0.25, 1.0)
    mask = (torch.arange(4) < act[:, None]).float()[:, None]
    terms = [
        (x @ first.T * values * mask) @ second.T
        for first, values, second in (
            (layer.first, layer.values, layer.second),
            (layer.first_start, layer.values_start, layer.second_start),
        )
    ]
    found = layer(x) - layer.base_layer(x)
    assert torch.allclose(found, 0.5 * (terms[0] - terms[1]), atol=1e-6)  # alpha / rank
    assert not torch.allclose(found, torch.zeros(()), atol=1e-4)
    file = bench.adapter.export(family.key_map, "tiny")["tiny.safetensors"]
    name = family.key_map.kohya("unet", path)
    assert (len(file[f"{name}.lora_down.weight"]), float(file[f"{name}.alpha"])) == (8, 4.0)
    with pytest.raises(RecipeError, match=r"method.rank: is 300, but .* has \d+ orthogonal vectors; lower it there"):
        Bench(family, section | {"rank": 300})


@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_of_several_kinds_in_one_pipeline(axis: str, family: Family, tmp_path: Path) -> None:
    """LoRA, DoRA on either axis and LoHa together: without strength each leaves the rest."""
    trained = {}
    dora = LORA | {"dora": True, "dora_axis": axis}
    for name, method in {"a": LORA, "b": dora, "c": ROWS["loha"].method}.items():
        bench = Bench(family, method)
        bench.train(2)
        trained[name] = Trained(method=method_of(method), folder=saved(bench, tmp_path / name, name), name=name)
    pipeline = family.pipeline()
    others = [Other(name=name, strength=1.0, trained=trained[name]) for name in "ac"]
    own = apply(pipeline, family, trained["b"], others)
    condition = bench.condition()["hidden"]

    @torch.no_grad()
    def predict(pipeline: Any) -> Tensor:
        found: Tensor = pipeline.unet(noisy(family), TIMESTEPS, condition, return_dict=False)[0]
        return found

    full = predict(pipeline)
    own.set_strength(0)
    rest = predict(pipeline)
    other = family.pipeline()
    apply(other, family, trained["a"], [Other(name="c", strength=1.0, trained=trained["c"])])
    assert torch.allclose(rest, predict(other), atol=1e-6)
    assert not torch.allclose(rest, full, atol=1e-6)
    own.set_strength(1)
    assert torch.equal(predict(pipeline), full)
    if axis == "output":
        with pytest.raises(DataError, match="a grid takes one adapter with DoRA"):
            apply(pipeline, family, trained["b"])


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ({"kind": "lora", "dora": True, "rank_dropout": 0.1}, "rank_dropout", "does not go with dora: true"),
        ({"kind": "lora", "dora": True, "timestep_ranks": {}}, "timestep_ranks", "does not go with dora: true"),
        ({"kind": "lora", "dora": True, "orthogonal": "both"}, "orthogonal", "both does not go with dora: true"),
        ({"kind": "lora", "dora_axis": "input"}, "dora_axis", "does nothing without dora: true"),
        ({"kind": "lora", "dora": True, "dora_axis": None}, "dora_axis", "is empty; write input or output"),
        ({"kind": "lokr", "full": True, "decompose_both": True}, "decompose_both", "does not go with full: true"),
        ({"kind": "lora", "parts": [{"modules": "to_k"}]}, "modules", "has neither rank nor alpha of its own"),
    ],
)
def test_settings_that_do_not_go_together(section: Mapping[str, Any], key: str, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        method_of(section)
    ((path, said),) = error.value.errors()[0]["ctx"]["broken"]
    assert path == (key,)
    assert said.startswith(message)


def test_settings_that_came_later_are_stated_where_they_are_set() -> None:
    old = {"kind": "lora", "rank": 4, "alpha": 4.0, "targets": "default", "text_encoder": False, "dropout": 0.0}
    assert method_of({"kind": "lora", "rank": 4}).stated() == old
    assert method_of({"kind": "lora", "rank": 4, "dora": True}).stated() == old | {"dora": True}
    inputs = method_of({"kind": "lora", "rank": 4, "dora": True, "dora_axis": "input"})
    assert inputs.stated() == old | {"dora": True, "dora_axis": "input"}
    assert method_of(inputs.stated()) == inputs
    assert method_of({"kind": "ia3"}).stated() == {"kind": "ia3"}
    pivotal = {"kind": "pivotal", "tokens": [{"token": "<x>"}]}
    for precision, said in (("float32", None), ("float16", "float16")):
        lora = {"kind": "lora", "rank": 4, "save_precision": precision}
        assert method_of({**pivotal, "lora": lora}).stated()["lora"].get("save_precision") == said


def test_lengths_are_those_of_inputs_unless_an_earlier_release_or_the_recipe_says_otherwise() -> None:
    warned: list[str] = []

    def stated(lora: Mapping[str, Any], kind: str = "lora") -> Mapping[str, Any]:
        method = lora if kind == "lora" else {"kind": kind, "tokens": [{"token": "<x>"}], "lora": lora}
        recipe = Recipe.model_validate(
            {
                "name": "cat",
                "base": {"model": "emoji-64"},
                "datasets": [{"path": "d"}],
                "method": method,
                "train": {"steps": 2},
            }
        )
        warned[:] = [warning for warning in recipe.warnings() if "dora" in warning]
        found = method_of(recipe.model_dump(mode="json", by_alias=True)["method"]).stated()
        assert method_of(found).stated() == found
        return found if kind == "lora" else found.get("lora", {})

    for kind in ("lora", "pivotal"):
        assert "dora_axis" not in stated({"kind": "lora"}, kind)
        assert stated({"kind": "lora", "dora": True}, kind)["dora_axis"] == "input"
        (said,) = warned
        assert "which diffusers and LyCORIS do not read; for those set method.dora_axis: output" in said
        outputs = stated({"kind": "lora", "dora": True, "dora_axis": "output"}, kind)
        assert not warned
        assert outputs["dora"]
        assert "dora_axis" not in outputs  # as before there was a choice, so that what was built stays fresh
