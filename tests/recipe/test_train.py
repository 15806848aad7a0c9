"""The section `train`: what goes together, and what is said of what does not."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sdbuild.recipe.load import load_project
from sdbuild.recipe.models import Sample
from tests.recipe.helpers import GOOD, complaints, write


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (
            "optimizer: prodigy, learning_rate: 1e-4",
            "learning_rate: prodigy finds the rate itself and takes 0.0001 times it; set 1",
        ),
        (
            "optimizer: prodigy, learning_rate: 1, learning_rates: {denoiser: 0.5}",
            "learning_rates: prodigy finds one rate for all parts; remove them or choose another optimizer",
        ),
        (
            "optimizer: prodigy, learning_rate: 1, lora_plus_ratio: 16",
            "lora_plus_ratio: prodigy finds one rate for all parts; remove it or choose another optimizer",
        ),
        (
            "optimizer: adamw-schedule-free, schedule: cosine",
            "schedule: adamw-schedule-free takes the place of cosine; remove it",
        ),
        (
            "optimizer: adamw-schedule-free, ema: {decay: 0.9}",
            "ema: adamw-schedule-free averages the weights by itself; remove it",
        ),
        (
            "prediction: flow, weighting: {kind: min-snr}",
            "weighting: min-snr is defined by noise schedules that flow does not have; "
            "remove it and choose timesteps instead, such as {kind: logit-normal}",
        ),
        (
            "prediction: epsilon, noise: {zero_terminal_snr: true}",
            "noise.zero_terminal_snr: needs a denoiser that predicts v or x0, for noise alone tells nothing when noise "
            "is what it predicts; remove it or set prediction: v",
        ),
        (
            "prediction: flow, noise: {zero_terminal_snr: true}",
            "noise.zero_terminal_snr: flow ends in noise alone by itself; remove it",
        ),
        (
            "noise: {offset: 0.1, pyramid: 0.3}",
            "noise.pyramid: does with many sizes what offset does with one; keep one of them",
        ),
        (
            "timesteps: {kind: uniform, low: 0.5, high: 0.5}",
            "timesteps.low: 0.5 is not less than high 0.5; widen the range",
        ),
        ("steps: 9, validate_every: 10", "validate_every: 10 is more than steps 9; lower it or remove it"),
        ("validate_every: 10", "validate_every: no pictures are held out to validate on; set holdout of a dataset"),
        ("early_stop: {}", "early_stop: looks at validations on the way; set validate_every too"),
        ("steps: 9, save_every: 9", "save_every: 9 is not less than steps 9, whose adapter is kept anyway"),
        ("save_most: 9", "save_most: no adapters are kept on the way; set save_every too"),
        ("schedule: restarts", "cycles: must be at least 2 for schedule restarts; one fall is schedule cosine"),
        ("cycles: 3", "cycles: schedule constant has none; remove it or set schedule: restarts"),
        ("power: 3", "power: schedule constant has none; remove it or set schedule: polynomial"),
        ("weighting: {kind: min_snr}", "weighting.kind: unknown kind 'min_snr' (did you mean min-snr?)"),
        ("weighting: min-snr", "weighting: must be a mapping such as {kind: min-snr}, is 'min-snr'"),
        ("loss: mse", "loss: must be a mapping such as {kind: l2}, is 'mse'"),
        ("ema: 0.99", "ema: must be a mapping such as {decay: 0.999}, is 0.99"),
        ("early_stop: true", "early_stop: must be a mapping such as {patience: 3}, is true"),
        ("weighting: {gamma: 5}", "weighting.kind: is missing; choose from uniform, min-snr, debiased"),
        (
            "learning_rates: {text_encoder: 1e-5}",
            "learning_rates.text_encoder: the text encoder is not trained; set method.text_encoder: true",
        ),
    ],
)
def test_what_does_not_go_together_is_said(project: Path, train: str, problem: str) -> None:
    write(project, cat=f"{GOOD}train: {{{train}}}\n")
    assert complaints(project) == [f"recipes/cat.yaml:3: train.{problem}"]


@pytest.mark.parametrize(
    "train",
    [
        "optimizer: prodigy",
        "optimizer: prodigy, learning_rate: 1, schedule: cosine, ema: {}",
        "prediction: v, noise: {zero_terminal_snr: true}, weighting: {kind: debiased}",
        "prediction: flow, timesteps: {kind: logit-normal, shift: 3}, loss: {kind: huber}",
        "schedule: restarts, cycles: 3",
        "schedule: polynomial, power: 1",
        "noise: {pyramid: 0.3, perturbation: 0.1}",
    ],
)
def test_what_does_is_accepted(project: Path, train: str) -> None:
    write(project, cat=f"{GOOD}train: {{{train}}}\n")
    assert len(load_project(project)) == 1


@pytest.mark.parametrize(("kind", "has"), [("lora", True), ("dreambooth_lora", True), ("loha", False), ("full", False)])
def test_a_ratio_needs_second_factors(project: Path, kind: str, has: bool) -> None:
    write(project, cat=f"{GOOD}method: {{kind: {kind}}}\ntrain: {{lora_plus_ratio: 16}}\n")
    if has:
        assert len(load_project(project)) == 1
    else:
        problem = f"recipes/cat.yaml:4: train.lora_plus_ratio: {kind} has no second factor; remove it"
        assert complaints(project) == [problem]


def test_tokens_are_words_that_prompts_leave_alone(project: Path) -> None:
    write(project, cat=f"{GOOD}method: {{kind: textual_inversion, tokens: [{{token: '[V]'}}, {{token: <V>}}]}}\n")
    problem = "'[V]' has brackets that prompts read as weights; choose others, such as '<toy>'"
    assert complaints(project) == [f"recipes/cat.yaml:3: method.tokens[0].token: {problem}"]


def test_tokens_are_names_of_files(project: Path) -> None:
    for token, problem in (
        (f"<{'ト' * 60}>", "has more than 180 bytes, and a file is called by it; shorten it"),
        ("cafe\\u0301", "'café' holds characters that nobody sees, or parted accents; write 'café'"),
        ("\\u200b", "holds nothing that can be seen; write a word such as '<toy>'"),
    ):
        write(project, cat=f'{GOOD}method: {{kind: textual_inversion, tokens: [{{token: "{token}", start: a}}]}}\n')
        [told] = complaints(project)
        assert unicodedata.normalize("NFC", told).startswith("recipes/cat.yaml:3: method.tokens[0].token: ")
        assert unicodedata.normalize("NFC", told).endswith(problem)


def test_prompts_that_say_other_than_captions_are_doubted(project: Path) -> None:
    write(project, cat=f"{GOOD}method: {{kind: textual_inversion, tokens: [{{token: <V>}}, {{token: <W>}}]}}\n")
    (recipe,) = load_project(project)
    assert list(recipe.warnings()) == []
    (dataset,) = recipe.datasets
    changes = {"datasets": (dataset.model_copy(update={"trigger": "[V] dog"}),)}
    for prompt, words in (
        ("a [V] dog, <V>, <W>", ["brackets"]),
        (r"\[V\] dog, <V>", ["no prompt of sample.prompts has <W>"]),
    ):
        sample = Sample(prompts=(prompt,))
        said = list(recipe.model_copy(update={**changes, "sample": sample}).warnings())
        assert len(said) == len(words)
        assert all(word in warning for word, warning in zip(words, said, strict=True))


def test_a_list_has_limits(project: Path) -> None:
    others = ", ".join(["{recipe: cat}"] * 8)
    write(project, cat=f"{GOOD}sample: {{prompts: [a], adapters: [{others}]}}\n")
    assert complaints(project) == ["recipes/cat.yaml:3: sample.adapters: must have at most 7 entries, has 8"]


@pytest.mark.parametrize("held", ["nf4", "int8", "bfloat16"])
def test_the_bases_own_weights_are_trained_in_float32(project: Path, held: str) -> None:
    held_in = f"train: {{precision: bfloat16, base_precision: {held}}}\n"
    write(project, cat=f"{GOOD}method: {{kind: full}}\n{held_in}")
    (problem,) = complaints(project)
    place = "recipes/cat.yaml:4: train.base_precision"
    assert problem.startswith(f"{place}: full trains the base's own weights, which {held} cannot hold; remove it")


@pytest.mark.parametrize(
    ("method", "part", "problem"),
    [
        ("kind: hypernetwork", "text_encoder", "hypernetwork does not train the text encoder; remove it"),
        ("kind: lora", "embeddings", "lora learns no tokens; remove it"),
        (
            "kind: textual_inversion, tokens: [{token: <x>}]",
            "denoiser",
            "textual_inversion does not train the denoiser; remove it",
        ),
        ("kind: pivotal, tokens: [{token: <x>}]", "text_encoder", "pivotal does not train the text encoder; remove it"),
        ("kind: pivotal, tokens: [{token: <x>}]", "denoiser", None),
        ("kind: pivotal, tokens: [{token: <x>}], lora: {text_encoder: true}", "text_encoder", None),
        ("kind: full, text_encoder: true", "text_encoder", None),
    ],
)
def test_what_has_a_learning_rate_is_trained(project: Path, method: str, part: str, problem: str | None) -> None:
    write(project, cat=f"{GOOD}method: {{{method}}}\ntrain: {{learning_rates: {{{part}: 1e-5}}}}\n")
    if problem is None:
        assert len(load_project(project)) == 1
    else:
        assert complaints(project) == [f"recipes/cat.yaml:4: train.learning_rates.{part}: {problem}"]
