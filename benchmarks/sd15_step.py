"""A training step at Stable Diffusion 1.5's size, in turns with a step of a bare loop, in float32 and bfloat16.

LoRA of rank 4 on attention, 256 px, batch 1. Both work in one process on the same weights of the base and take turns
step by step, so that whatever else the machine does slows them alike.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from benchmarks.harness import Options, Row, Watch, at_most, folder, main, told
from benchmarks.project import Steps
from benchmarks.sd15_base import METHOD, SIDE, attention_layers, cached_project
from benchmarks.training import in_memory
from sdbuild.training.precision import Precision

WARM = 1
"""Turns that are not counted: first uses of everything."""
STEPS = {"float32": 7, "bfloat16": 5}
"""Turns by number format, the warm ones included; a step takes seconds."""
CRAWLING = 3
"""Turns in a format that the processor has no kernels for: a step takes minutes there."""


def measure(options: Options) -> list[Row]:
    """Train with the train step and with a bare loop, in turns."""
    rows = []
    for precision, count in STEPS.items():
        rows.append(compare(precision, 3 if options.small else count, small=options.small))
        told(f"  {rows[-1].what}: {rows[-1].measured}")
    return rows


def compare(precision: str, count: int, *, small: bool) -> Row:
    """Take so many turns in one number format."""
    import torch

    crawls = Precision(compute=precision).crawls(torch.device("cpu"))
    turns = min(count, CRAWLING) if crawls else count
    with folder() as root:
        taken = take_turns(cached_project(root, small=small, side=SIDE, steps=turns, precision=precision))
    without = ["the processor has no kernels for this format"] if crawls else []
    return taken.row(f"SD1.5 training step over a bare loop, {precision}, {SIDE} px", *without)


@dataclass(kw_only=True)
class Turns:
    """Progress of the train step: at each report, the bare loop takes as many steps as the train step has."""

    make_bare: Callable[[], Callable[[int], None]]
    """Makes the bare loop once the train step has its model; called with a number it takes so many steps."""
    synchronize: Callable[[], None] = lambda: None
    """Waits for the device."""
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"ours": [], "bare": []})
    """Wall and processor seconds of a step, by turn."""
    operations: int = 0
    """Floating-point operations of a step's matrix products and convolutions, if they were counted."""
    _bare: Callable[[int], None] | None = None
    _done: int = 0
    _watch: Watch = field(default_factory=Watch)

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Note what the train step took since the last call, then take the bare loop's turn."""
        self.synchronize()
        wall, cpu = self._watch.look()
        taken = done - self._done
        if self._bare is None:
            self._bare = self.make_bare()
        elif taken:
            self.seconds["ours"].append((wall / taken, cpu / taken))
            self._watch.look()
            self._bare(taken)
            self.synchronize()
            wall, cpu = self._watch.look()
            self.seconds["bare"].append((wall / taken, cpu / taken))
        self._done = done
        self._watch.look()

    def ratio(self, clock: str) -> float:
        """Return the median of ours over bare, turn by turn."""
        ours, bare = self._counted(clock)
        return statistics.median([mine / theirs for mine, theirs in zip(ours, bare, strict=True)])

    def median(self, name: str, clock: str = "wall") -> float:
        """Return the seconds of a step of `ours` or `bare`."""
        return statistics.median(self._counted(clock)[list(self.seconds).index(name)])

    def row(self, what: str, *notes: str) -> Row:
        """Return the line of the table."""
        names = {"ours": "train step", "bare": "bare loop"}
        figures = (
            f"{names[name]}: {self.median(name):.3g} s, {self.median(name, 'cpu'):.3g} s CPU a step; "
            f"{len(self.seconds[name]) - WARM} turns"
            for name in self.seconds
        )
        by_cpu = f"by CPU time: {self.ratio('cpu'):.3f}x"
        return at_most(what, self.ratio("wall"), 1.05, *figures, by_cpu, *notes)

    def _counted(self, clock: str) -> list[list[float]]:
        at = ("wall", "cpu").index(clock)
        return [[each[at] for each in found[WARM:]] for found in self.seconds.values()]


def take_turns(steps: Steps, *, compiled: bool = False, counted: bool = False) -> Turns:
    """Run the train step, each of its steps followed by one of a bare loop on the same weights.

    Args:
        steps: whose recipe is trained.
        compiled: whether the bare loop's network is compiled too.
        counted: whether to count operations.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sdbuild.families import networks

    loaded: list[tuple[Any, dict[str, Any]]] = []
    load = networks.load_network

    def noted(*arguments: Any) -> Any:
        network = load(*arguments)
        loaded.append((network, network.state_dict()))
        return network

    def make_bare() -> Callable[[int], None]:
        loaded_network, state = loaded.pop()
        network, parameters = bare_network(loaded_network.config, state)
        take = bare_loop(steps, network, parameters)
        if counted:
            with FlopCounterMode(display=False) as counter:
                take(1)
            turns.operations = counter.get_total_flops()
        if compiled:
            network.compile()
        return take

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    turns = Turns(make_bare=make_bare, synchronize=synchronize)
    with mock.patch.object(networks, "load_network", noted):
        steps.run("train", on_progress=turns)
    return turns


def bare_network(config: Any, state: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Make a UNet that shares given weights, with a LoRA as diffusers' scripts add it; return its parameters too."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False).eval()
    layers = list(attention_layers(network))
    network.add_adapter(LoraConfig(r=METHOD["rank"], lora_alpha=METHOD["alpha"], target_modules=layers))
    cast_training_params(network, torch.float32)
    return network, [parameter for parameter in network.parameters() if parameter.requires_grad]


def bare_loop(steps: Steps, network: Any, parameters: list[Any]) -> Callable[[int], None]:
    """Return training as one would write it by hand: data in memory, nothing drawn twice alike, nothing kept."""
    import torch
    from diffusers import DDPMScheduler

    device, dtype = network.device, network.dtype
    scheduler = DDPMScheduler.from_pretrained(steps.root / "base" / "scheduler")
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    latents, hidden = (tensor.to(device) for tensor in in_memory(steps.out))
    batch = steps.spec("train")["train"]["batch"]
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    def take(count: int) -> None:
        for _ in range(count):
            chosen = torch.randint(len(latents), (batch,), device=device)
            x = latents[chosen] * 0.18215
            noise = torch.randn_like(x)
            timesteps = torch.randint(1000, (batch,), device=device)
            noisy = scheduler.add_noise(x, noise, timesteps)
            with autocast:
                shown = hidden[chosen % len(hidden)].to(dtype)
                prediction = network(noisy.to(dtype), timesteps, shown, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), noise)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return take


if __name__ == "__main__":
    sys.exit(main(measure))
