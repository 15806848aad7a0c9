"""Textual inversion, pivotal tuning and hypernetworks, on tiny pipelines of all families that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdbuild import families, methods
from sdbuild.errors import RecipeError, StepError
from sdbuild.families.contract import Family
from sdbuild.families.text import expanded
from sdbuild.methods.contract import Adapter, Networks, Pickled, Staged
from sdbuild.methods.tokens import Rows
from sdbuild.recipe.methods import method_of
from sdbuild.sampling.draw import Sample, Settings, draw
from sdbuild.training.metadata import write_pickles
from sdbuild.training.precision import Precision
from sdbuild.training.state import TrainingState
from tests.methods.readers import hypernetwork_of
from tests.tiny import make_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

TOKENS = {"tokens": [{"token": "<toy>", "vectors": 3, "start": "red cat"}, {"token": "<style>"}]}
ROWS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"kind": "textual_inversion", **TOKENS},
    "pivotal": {"kind": "pivotal", **TOKENS, "lora": {"kind": "lora", "rank": 2}},
    "pivotal with text": {"kind": "pivotal", **TOKENS, "lora": {"kind": "lora", "rank": 2, "text_encoder": True}},
    "hypernetwork": {"kind": "hypernetwork"},
    "hypernetwork deep": {
        "kind": "hypernetwork",
        "layers": [1, 2, 1.5, 1],
        "activation": "mish",
        "layer_norm": True,
        "dropout": 0.1,
        "start": "kaiming-normal",
    },
}
TEXTS = ("a <toy> <style>", "<style>")


class Bench:
    """A base with an adapter, and fixed inputs to look at it with."""

    def __init__(
        self, family: Family, section: Mapping[str, Any], dtype: torch.dtype = torch.float32, held: str | None = None
    ) -> None:
        self.family = family
        self.method = method_of(section)
        self.denoiser, self.text = family.load_denoiser(dtype), family.load_text(dtype)
        precision = Precision(compute=str(dtype).removeprefix("torch."), base=held)
        precision.settle([self.denoiser.module, *self.text.modules.values()], torch.device("cpu"))
        self.plain = self.predict(("a cat", "a dog"))
        self.modules = {self.denoiser.component: self.denoiser.module, **self.text.modules}
        chosen = {
            name: module
            for name, module in self.modules.items()
            if ("denoiser" if name == self.denoiser.component else "text") in self.method.sides
        }
        self.weights = self.tensors()
        base = Networks(modules=chosen, text=self.text if "text" in self.method.sides else None)
        self.adapter: Adapter = methods.load(self.method.kind).inject(base, self.method, seed=0)
        self.before = self.predict()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{component}.{name.replace('.base_layer', '').replace('token_embedding.embedding', 'token_embedding')}": t
            for component, module in self.modules.items()
            for name, t in module.state_dict().items()
        }

    def predict(self, texts: tuple[str, str] = TEXTS) -> Tensor:
        with torch.no_grad():
            return self.run(texts)

    def run(self, texts: tuple[str, str] = TEXTS) -> Tensor:
        denoiser: Any = self.denoiser.module
        channels = denoiser.config.in_channels
        noisy = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        tokens = [self.text.tokenize(text) for text in texts]
        condition = self.text.condition({name: torch.stack([each[name] for each in tokens]) for name in tokens[0]})
        condition["geometry"] = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
        return self.denoiser.predict(noisy.to(condition["hidden"].dtype), torch.tensor([3, 700]), condition)

    def train(self, steps: int = 5) -> list[float]:
        optimizer = torch.optim.AdamW([parameter for _, parameter in self.adapter.parameters()], lr=1e-2)
        losses = []
        for step in range(steps):
            if isinstance(self.adapter, Staged):
                self.adapter.begin(step, steps)
            loss = (self.run().float() - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if isinstance(self.adapter, Staged):
                self.adapter.stepped()
            losses.append(float(loss.detach()))
        return losses


@pytest.fixture(scope="module", params=["sd1", "sdxl", "sd3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return families.load(make_pipeline(tmp_path_factory.mktemp("base"), family=request.param))


@pytest.fixture(scope="module", params=["sd1", "sdxl", "sd3"])
def clips(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Bases whose text encoders all cut words into the same tokens."""
    return families.load(make_pipeline(tmp_path_factory.mktemp("base"), family=request.param, t5=False))


@pytest.fixture(params=ROWS)
def section(request: pytest.FixtureRequest, family: Family) -> dict[str, Any]:
    if family.name == "sd3" and ROWS[request.param]["kind"] == "hypernetwork":
        pytest.skip("SD3 has no cross-attention")
    return ROWS[request.param]


@pytest.fixture
def bench(family: Family, section: dict[str, Any]) -> Bench:
    return Bench(family, section)


def test_other_prompts_start_as_they_were(bench: Bench) -> None:
    assert torch.equal(bench.predict(("a cat", "a dog")), bench.plain)


def test_loss_falls_and_only_own_parameters_change(bench: Bench) -> None:
    losses = bench.train()
    assert losses[-1] < losses[0]
    own = {id(parameter) for _, parameter in bench.adapter.parameters()}
    assert {id(p) for m in bench.modules.values() for p in m.parameters() if p.requires_grad} <= own
    now = bench.tensors()
    assert all(torch.equal(now[name], tensor) for name, tensor in bench.weights.items())
    assert all(tensor.dtype == torch.float32 for tensor in bench.adapter.state().values())


def test_disabled_and_strength_zero_are_the_start(bench: Bench) -> None:
    bench.train()
    full = bench.predict()
    with bench.adapter.disabled():
        assert torch.equal(bench.predict(), bench.before)
    assert torch.equal(bench.predict(), full)
    bench.adapter.set_strength(0.5)
    half = bench.predict()
    whole = (full - bench.before).norm()
    assert 0 < (half - bench.before).norm() < whole
    assert 0 < (half - full).norm() < whole
    bench.adapter.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)


def test_what_is_not_merged_says_so(bench: Bench) -> None:
    bench.train()
    before = bench.predict()
    if bench.method.kind == "hypernetwork":
        with pytest.raises(StepError, match="cannot be merged"):
            bench.adapter.merge()
    else:
        bench.adapter.merge()
        assert torch.allclose(bench.predict(), before, atol=1e-5)


def test_saved_and_loaded_predicts_the_same(bench: Bench, section: dict[str, Any], tmp_path: Path) -> None:
    bench.train()
    other = Bench(bench.family, section)
    other.adapter.load_state({name: tensor.clone() for name, tensor in bench.adapter.state().items()})
    assert torch.equal(other.predict(), bench.predict())
    with pytest.raises(ValueError, match="not this adapter's weights"):
        other.adapter.load_state({})
    for name, tensors in bench.adapter.export(bench.family.key_map, "mine").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
    pipeline = bench.family.pipeline()
    text = bench.family.text_of(pipeline)
    modules = {bench.family.denoiser: getattr(pipeline, bench.family.denoiser), **text.modules}
    chosen = {
        name: m for name, m in modules.items() if ("text" if name in text.modules else "denoiser") in bench.method.sides
    }
    networks = Networks(modules=chosen, text=text)
    applied = methods.load(bench.method.kind).apply(
        pipeline, networks, bench.method, tmp_path, key_map=bench.family.key_map, name="mine"
    )
    applied.set_strength(1)
    bench.denoiser = type(bench.denoiser)(**{**vars(bench.denoiser), "module": modules[bench.family.denoiser]})
    expected, bench.text = bench.predict(), text
    assert torch.allclose(bench.predict(), expected, atol=1e-6)


@pytest.mark.parametrize("held", [None, "nf4"])
def test_halves_train(family: Family, section: dict[str, Any], held: str | None) -> None:
    bench = Bench(family, section, torch.bfloat16, held)
    losses = bench.train(8)
    assert losses[-1] < losses[0]


def as_many(family: Family, token: str, start: str) -> dict[str, Any]:
    """A token of as many vectors as its start has tokens."""
    tokenizer, _ = next(iter(family.load_text().readers.values()))
    return {"token": token, "vectors": len(tokenizer(start, add_special_tokens=False).input_ids), "start": start}


def test_words_start_as_other_words(clips: Family) -> None:
    bench = Bench(clips, {"kind": "textual_inversion", "tokens": [as_many(clips, "<x>", "red cat")]})
    assert torch.allclose(bench.predict(("a <x>", "<x>!")), bench.predict(("a red cat", "red cat!")), atol=1e-6)
    one = Bench(clips, {"kind": "textual_inversion", "tokens": [{"token": "<y>", "start": "red cat"}]})
    (name, vectors), *_ = one.adapter.parameters()
    component: Any = name.removeprefix("embeddings.")
    rows: Any = one.text.modules[component]
    rows = rows.get_input_embeddings()
    assert isinstance(rows, Rows)
    ids = one.text.readers[component][0]("red cat", add_special_tokens=False).input_ids
    assert torch.allclose(vectors[0], rows(torch.tensor(ids)).mean(dim=0), atol=1e-6)


def test_lengths_stay_near_the_vocabularys(family: Family) -> None:
    lengths = {}
    for norm in (0.0, 1.0):
        bench = Bench(family, {"kind": "textual_inversion", **TOKENS, "norm": norm})
        bench.train()
        lengths[norm] = [parameter.detach().norm(dim=-1) for _, parameter in bench.adapter.parameters()]
    assert all((each - each.mean()).abs().max() < 1e-5 for each in lengths[1.0])
    assert any((each - each.mean()).abs().max() > 1e-3 for each in lengths[0.0])


def test_parts_of_pivotal_tuning_wait(family: Family) -> None:
    bench = Bench(family, {**ROWS["pivotal"], "tokens_until": 0.5, "lora_from": 0.5})
    before = {name: tensor.clone() for name, tensor in bench.adapter.state().items()}
    bench.train(2)
    after = bench.adapter.state()
    assert isinstance(bench.adapter, Staged)
    bench.adapter.begin(0, 2)
    waiting = {name for name, parameter in bench.adapter.parameters() if not parameter.requires_grad}
    assert waiting == {name for name in after if "lora" in name}
    bench.adapter.begin(1, 2)
    assert waiting == {name for name, parameter in bench.adapter.parameters() if parameter.requires_grad}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("embeddings" in name for name in changed)
    assert any("lora_B" in name for name in changed)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_grids_read_the_words(clips: Family, strength: float) -> None:
    section = {"kind": "textual_inversion", "tokens": [as_many(clips, "<toy>", "red cat")]}
    bench = Bench(clips, section)
    chance = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=chance) for name, t in bench.adapter.state().items()}
    pipeline = clips.pipeline()
    text = clips.text_of(pipeline)
    adapter = methods.load("textual_inversion").inject(
        Networks(modules=text.modules, text=text), method_of(section), seed=0
    )
    adapter.load_state(state)
    settings = Settings(scheduler="euler", steps=2, guidance=4.0, negative="", width=64, height=64)

    def picture(prompt: str) -> Any:
        ((_, image),) = draw(pipeline, adapter, clips, [Sample(prompt=prompt, seed=0, strength=strength)], settings)
        return np.asarray(image).astype(int)

    apart = np.abs(picture("a <toy>") - picture("a red cat")).max()
    assert (apart <= 1) if strength == 0 else (apart > 1)


def test_diffusers_reads_the_embedding(tmp_path: Path) -> None:
    family = families.load(make_pipeline(tmp_path / "base"))
    bench = Bench(family, {"kind": "textual_inversion", "tokens": [{"token": "<toy>", "vectors": 2, "start": "cat"}]})
    bench.train()
    files = bench.adapter.export(family.key_map, "mine")
    assert list(files) == ["mine.safetensors", "embeddings/toy.safetensors"]
    assert list(files["mine.safetensors"]) == ["emb_params"]
    save_file(files["mine.safetensors"], tmp_path / "toy.safetensors")
    pipeline = family.pipeline()
    pipeline.load_textual_inversion(tmp_path, weight_name="toy.safetensors", token="<toy>", local_files_only=True)
    theirs, _ = pipeline.encode_prompt("a <toy>!", "cpu", 1, False)
    tokens = {name: ids[None] for name, ids in bench.text.tokenize("a <toy>!").items()}
    assert torch.allclose(bench.text.condition(tokens)["hidden"], theirs, atol=1e-6)


def test_files_have_the_fields_names(family: Family) -> None:
    names = {"sd1": {"string_to_param.*"}, "sdxl": {"clip_l", "clip_g"}, "sd3": {"clip_l", "clip_g", "t5xxl"}}[
        family.name
    ]
    bundle = Bench(family, ROWS["pivotal"]).adapter.export(family.key_map, "mine")["mine.safetensors"]
    words = {name for name in bundle if name.startswith("bundle_emb.")}
    assert words == {f"bundle_emb.{token}.{name}" for token in ("<toy>", "<style>") for name in names}
    assert all(name.startswith("lora_") for name in bundle.keys() - words)


@pytest.mark.parametrize("name", ["hypernetwork", "hypernetwork deep"])
def test_web_uis_read_a_hypernetwork(name: str, tmp_path: Path) -> None:
    family = families.load(make_pipeline(tmp_path / "base"))
    bench = Bench(family, ROWS[name])
    bench.train()
    denoiser: Any = bench.denoiser.module
    width = denoiser.config.cross_attention_dim
    assert isinstance(bench.adapter, Pickled)
    write_pickles(tmp_path, bench.adapter.pickled("mine"))
    first = (tmp_path / "mine.pt").read_bytes()
    write_pickles(tmp_path, bench.adapter.pickled("mine"))
    assert (tmp_path / "mine.pt").read_bytes() == first
    read = hypernetwork_of(torch.load(tmp_path / "mine.pt", weights_only=True))
    states = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(0))
    for number, projection in enumerate(("to_k", "to_v")):
        (module, *_) = [m for path, m in denoiser.named_modules() if path.endswith(f"attn2.{projection}")]
        (hook, *_) = module._forward_pre_hooks.values()
        with torch.no_grad():
            changed = read[width][number](states)
            assert torch.allclose(states + changed, hook(module, (states,))[0], atol=1e-6)
        assert changed.abs().max() > 1e-4
    names = bench.adapter.export(family.key_map, "mine")["mine.safetensors"]
    assert set(names) == {f"{width}.{number}.{key}" for number in (0, 1) for key in read[width][number].state_dict()}


def test_bases_without_cross_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs cross-attention"):
        Bench(families.load(make_pipeline(tmp_path / "base", family="sd3")), ROWS["hypernetwork"])


def test_known_words_are_refused(family: Family) -> None:
    vocabulary = next(iter(family.load_text().readers.values()))[0].get_vocab()
    known = min(word for word in vocabulary if word.isalpha())
    with pytest.raises(RecipeError, match="tokenizer knows"):
        Bench(family, {"kind": "textual_inversion", "tokens": [{"token": known, "start": "cat"}]})


def test_a_word_is_the_same_in_capitals_for_every_encoder(family: Family) -> None:
    """All vectors of a word are used whatever its case, also by tokenizers that tell capitals apart."""
    section = {"kind": "textual_inversion", "tokens": [{"token": "<Toy>", "vectors": 3, "start": "cat"}]}
    text = Bench(family, section).text
    for tokenizer, _ in text.readers.values():
        wanted = tokenizer.convert_tokens_to_ids(["<Toy>", "<Toy>_1", "<Toy>_2"])
        for said in ("a <Toy> cat", "a <toy> cat", "a <TOY> cat"):
            ids = tokenizer(expanded(tokenizer, said), add_special_tokens=False).input_ids
            assert [each for each in ids if each in wanted] == wanted
        ids = tokenizer(expanded(tokenizer, "<toy>_1"), add_special_tokens=False).input_ids
        assert [each for each in ids if each in wanted] == wanted[1:2], "one vector by its own name"
        special = tokenizer.eos_token
        assert expanded(tokenizer, special.upper()) == special.upper()


def test_resumed_training_gives_the_same_bytes(family: Family, section: dict[str, Any]) -> None:
    """From a snapshot in the first part, when what waits has no moments yet."""

    def begin() -> tuple[Bench, TrainingState]:
        bench = Bench(family, section)
        optimizer = torch.optim.AdamW([parameter for _, parameter in bench.adapter.parameters()], lr=1e-2)
        return bench, TrainingState(adapter=bench.adapter, optimizer=optimizer)

    def go(bench: Bench, state: TrainingState, first: int, last: int) -> None:
        for step in range(first, last):
            if isinstance(bench.adapter, Staged):
                bench.adapter.begin(step, 4)
            torch.manual_seed(step)
            bench.adapter.train(True)
            state.optimizer.zero_grad()
            (bench.run() - 0.5).square().mean().backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            if isinstance(bench.adapter, Staged):
                bench.adapter.stepped()

    straight, broken, resumed = begin(), begin(), begin()
    go(*straight, 0, 4)
    go(*broken, 0, 1)
    snapshot = broken[1].snapshot()
    resumed[1].restore(replace(snapshot, tensors={name: tensor.clone() for name, tensor in snapshot.tensors.items()}))
    go(*resumed, 1, 4)
    one, other = straight[0].adapter.state(), resumed[0].adapter.state()
    assert all(torch.equal(one[name], other[name]) for name in one)
