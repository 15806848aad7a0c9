"""Adapters' files: names that the field's programs know, which make of them what was trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdbuild.errors import DataError
from sdbuild.methods.elsewhere import add, parts_of
from sdbuild.methods.layered import in_file
from sdbuild.methods.layers import Layer, LayersAdapter
from sdbuild.methods.lora.adapter import LoraAdapter
from sdbuild.methods.lora.dora import halves_exchanged
from sdbuild.methods.targets import innermost
from sdbuild.steps.model import Other, Trained
from tests.methods.bench import IA3, ROWS, Bench, Drawn, base
from tests.methods.readers import DORA, weight_of
from tests.methods.test_matrix import saved

ENDS = {
    "lora": {"lora_down.weight", "lora_up.weight", "alpha"},
    "dora": {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
    "loha cores": {f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")} | {"alpha"},
    "lokr": {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"},
    "lokr full": {"lokr_w1", "lokr_w2", "alpha"},
    "lokr both": {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "alpha"},
    "lokr cores": {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"},
    "glora": {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha", "diff_b"},
    "glora text": {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"},
    "oft": {"oft_blocks", "alpha"},
    "ia3": {"weight", "on_input"},
}
MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def trained(name: str, root: Path) -> Bench:
    bench = Bench(base("sd1", root), ROWS[name].method)
    bench.train(2)
    return bench


@pytest.mark.parametrize("name", ENDS)
def test_the_names_that_readers_know(name: str, root: Path) -> None:
    bench = trained(name, root)
    file = bench.adapter.export(bench.family.key_map, "tiny")["tiny.safetensors"]
    assert {key.partition(".")[2] for key in file} <= ENDS[name]
    if not name.endswith("cores"):
        assert any(key.startswith(f"{MODULE}.") for key in file)
    assert {bench.family.key_map.path(key.partition(".")[0])[0] for key in file} == set(bench.modules)


@pytest.mark.parametrize("name", [name for name in ROWS if "timesteps" not in name])
def test_readers_make_of_a_file_what_merging_does(name: str, root: Path) -> None:
    bench = trained(name, root)
    adapter = bench.adapter
    assert isinstance(adapter, LoraAdapter | LayersAdapter)
    layers = {place: innermost(layer) for place, layer in adapter.layers.items()}
    key_map = bench.family.key_map
    parts = in_file(adapter.export(key_map, "tiny")["tiny.safetensors"], list(layers), key_map)
    read: dict[object, tuple[Tensor, Tensor | None]] = {}
    for place, layer in layers.items():
        weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
        shift = parts[place].get("diff_b", torch.zeros(()))
        read[place] = weight_of(parts[place], weight), None if bias is None else bias + shift
        assert not torch.allclose(read[place][0], weight, atol=1e-7)
    adapter.merge()
    for place, layer in layers.items():
        expected, of_bias = read[place]
        assert torch.allclose(layer.get_parameter("weight"), expected, atol=2e-6)
        if of_bias is not None:
            assert torch.allclose(layer.get_parameter("bias"), of_bias, atol=2e-6)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "place"),
    [("dora", "sd1"), ("dora", "sdxl"), ("dora", "sd3"), ("dora convolutions", "sd1"), ("dora all-linear", "sdxl")],
)
def test_all_programs_make_the_same_of_a_dora_as_grids(name: str, place: str, root: Path, tmp_path: Path) -> None:
    """Layer by layer, of the change alone: linear layers, convolutions, text encoders."""
    family: Any = base(place, root)
    bench = Bench.trained(family, name)
    bench.adapter.set_strength(1)
    drawn = Drawn(bench, saved(bench, tmp_path))
    assert isinstance(drawn.adapter, LayersAdapter)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.safetensors"}
    file = load_file(tmp_path / "tiny.safetensors")
    assert {key.partition(".")[2] for key in file} == ENDS["dora"]
    names = {key.partition(".")[0] for key in file}
    seen = set()
    for (component, path), layer in drawn.adapter.layers.items():
        own, exchanged = family.key_map.authors(component, path)
        names.remove(own)
        weight, change = layer.weight, layer.change()[0]
        if exchanged:  # the authors of SD3, whose names and weights ComfyUI has, exchange the halves of these rows
            assert own.startswith("lora_unet_joint_blocks_1_context_block")
            weight, change = (halves_exchanged(each) for each in (weight, change))
        down, up, lengths = (file[f"{own}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "dora_scale"))
        assert lengths.shape == (1, weight.shape[1], *[1] * (weight.dim() - 2))
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        for reader in DORA:
            theirs = reader(lengths, weight.clone(), product, float(file[f"{own}.alpha"]) / len(down)) - weight
            if change.norm() > 1e-3 * weight.norm():
                assert relative(theirs, change) < 1e-4, (reader.__name__, path)
            else:  # last layers whose outputs nothing takes, so that only their lengths decay
                assert (theirs - change).norm() < 1e-5 * weight.norm()
        seen.add((component, weight.dim(), exchanged))
    assert not names
    assert {component for component, *_ in seen} == set(bench.modules)
    assert any(dim == 4 for _, dim, _ in seen) == (place == "sd1")
    assert any(exchanged for *_, exchanged in seen) == (place == "sd3")


@pytest.mark.parametrize("name", [name for name in ROWS if "timesteps" not in name])
def test_grids_read_files_from_elsewhere(name: str, root: Path, tmp_path: Path) -> None:
    """By what is in them alone, beside an adapter of the recipe's own."""
    family: Any = base(ROWS[name].families[-1], root)
    bench = Bench.trained(family, name)
    bench.adapter.set_strength(1)
    files = bench.adapter.export(bench.family.key_map, "tiny")
    file = tmp_path / "it.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in files["tiny.safetensors"].items()}, file)
    own = Bench(bench.family, IA3 | {"targets": ["to_v"]})
    drawn = Drawn(own, saved(own, tmp_path), [Other(name="it", strength=1.0, file=file)])
    assert torch.allclose(drawn.predict(), bench.full, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "dora", "lokr", "oft"])
def test_files_in_half_precision(name: str, root: Path, tmp_path: Path) -> None:
    family: Any = base("sd1", root)
    bench = Bench(family, {**ROWS[name].method, "save_precision": "float16"})
    bench.train(2)
    for file in bench.adapter.export(family.key_map, "tiny").values():
        lengths = {key for key in file if key.endswith("dora_scale")}
        assert {tensor.dtype for key, tensor in file.items() if tensor.dim() and key not in lengths} == {torch.float16}
        assert all(file[key].dtype == torch.float32 for key in lengths)
        assert all(tensor.dtype != torch.float16 for tensor in file.values() if not tensor.dim())
    assert all(tensor.dtype == torch.float32 for tensor in bench.adapter.state().values())
    drawn, full = Drawn(bench, saved(bench, tmp_path)), bench.predict()
    assert torch.allclose(drawn.predict(), full, atol=1e-2)
    assert not torch.allclose(full, bench.before, atol=2e-2)
    drawn.adapter.set_strength(0)
    assert torch.equal(drawn.predict(), bench.before)


def test_what_is_read_from_elsewhere(root: Path) -> None:
    """Parts that no method here writes, and what is refused."""
    family: Any = base("sd1", root)
    bench = Bench(family, IA3)
    key_map, network = bench.family.key_map, bench.model["unet"]
    conv = "down_blocks.0.resnets.0.conv1"
    out, into, *_ = network.get_submodule(conv).get_parameter("weight").shape
    shapes = ((2, into, 1, 1), (out, 2, 1, 1), (2, 2, 3, 3))
    down, up, core = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    place = key_map.kohya("unet", conv)
    file = {f"{place}.lora_down.weight": down, f"{place}.lora_up.weight": up, f"{place}.lora_mid.weight": core}
    parts = parts_of({**file, f"{MODULE}.diff": torch.ones(1)}, bench.model, key_map)
    assert parts is not None
    assert len(parts) == 2
    with pytest.raises(ValueError, match="of another size"):
        add(parts, bench.model)
    parts = parts_of(file, bench.model, key_map)
    assert parts is not None
    (layer,) = add(parts, bench.model).layers.values()
    expected = torch.einsum("oi,ijhw,jn->onhw", up.flatten(1), core, down.flatten(1))
    assert torch.allclose(layer.change()[0], expected, atol=1e-5)
    unknown = parts_of({f"{MODULE}.w_norm": torch.ones(1)}, bench.model, key_map)
    assert unknown is not None
    with pytest.raises(ValueError, match="has w_norm, which is nothing that is read"):
        add(unknown, bench.model)
    assert parts_of({"lora_unet_elsewhere.alpha": torch.ones(())}, bench.model, key_map) is None


def test_a_file_of_another_adapter_is_refused(root: Path) -> None:
    bench = trained("loha", root)
    adapter = bench.adapter
    assert isinstance(adapter, LayersAdapter)
    file = adapter.export(bench.family.key_map, "tiny")["tiny.safetensors"]
    with pytest.raises(DataError, match=rf"the adapter has no {MODULE}: it belongs to another base"):
        adapter.read({key: tensor for key, tensor in file.items() if not key.startswith(MODULE)}, bench.family.key_map)


def test_adapters_stand_on_each_other(root: Path) -> None:
    """One after the other in the same networks, each with a strength of its own."""
    from sdbuild import methods
    from sdbuild.recipe.methods import method_of
    from sdbuild.steps.model import networks

    bench = trained("loha", root)
    alone = bench.predict()
    method = method_of({"kind": "lokr", "rank": 2, "targets": ["to_q", "to_k"]})
    second = methods.load("lokr").inject(networks(method, bench.family, bench.model, bench.text), method, seed=3)
    assert torch.equal(bench.predict(), alone)
    for _, parameter in second.parameters():
        parameter.data += 0.1
    assert not torch.equal(bench.predict(), alone)
    second.set_strength(0)
    assert torch.equal(bench.predict(), alone)
    bench.adapter.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)
    assert isinstance(bench.adapter, LayersAdapter)
    assert all(isinstance(layer, Layer) for layer in bench.adapter.layers.values())


def test_what_does_not_go_with_a_base_is_told(root: Path, tmp_path: Path) -> None:
    for folder in ("own", "wide"):
        (tmp_path / folder).mkdir()
    own, wide = (Bench(base(family, root), ROWS["lora"].method) for family in ("sd1", "sdxl"))
    trained = Trained(method=wide.method, folder=saved(wide, tmp_path / "wide"), name="tiny")
    saved(own, tmp_path / "own")
    (tmp_path / "junk.safetensors").write_bytes(bytes(30))
    save_file({"emb_params": torch.ones(1, 4)}, tmp_path / "words.safetensors")
    remedy = (
        "does not go with this base; name a LoRA, LoHa, LoKr or the like that was made for a base of the same family"
    )
    for other in (
        Other(name="xl", strength=1.0, trained=trained),
        *(Other(name=name, strength=1.0, file=tmp_path / name) for name in ("junk.safetensors", "words.safetensors")),
        Other(name="xl.safetensors", strength=1.0, file=tmp_path / "wide/tiny.safetensors"),
    ):
        said = ": is no safetensors file, or its start is damaged" if "junk" in other.name else f" {remedy}"
        with pytest.raises(DataError, match=re.escape(f"sample.adapters[1]: {other.name}{said}")):
            Drawn(own, tmp_path / "own", [Other(name="a", strength=1.0, file=tmp_path / "own/tiny.safetensors"), other])
