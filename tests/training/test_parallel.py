"""A training shared by several processes: the same steps as one alone takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbuild.errors import StepError
from sdbuild.training import parallel
from tests.training import toy

PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
import sdbuild.training.checkpoint as checkpoint
from sdbuild.build.worker import die_with_parent
from sdbuild.errors import StepError
from sdbuild.training.parallel import join
from sdbuild.training.tensorfile import content_digest
from tests.training import toy

checkpoint.SHARE = 1e9
folder, count, jobs = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])

def added_up(processes):
    one, other, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    if processes.first:
        one.grad = torch.ones(2)
    other.grad = torch.full((2,), float(processes.rank))
    losses = torch.arange(*processes.share(5)).float()
    every = processes.add_up([one, unused, other], losses, 5)
    return [every.tolist(), one.grad.tolist(), other.grad.tolist(), unused.grad]

def agreed(processes):
    try:
        return processes.agreed("other" if processes.rank == 2 else "same", None)
    except StepError as error:
        return str(error)

def trained(processes, name, settings, **job):
    if "broken" in job:
        whole = toy.latent
        toy.latent = lambda key: {k: v * torch.nan if key == job["broken"] else v for k, v in whole(key).items()}
    if "begun" in job:
        toy.run(folder / name, toy.settings_of(**settings | {"steps": job["begun"]}), processes=processes)
    try:
        state = toy.run(folder / name, toy.settings_of(**settings), processes=processes)
    except StepError as error:
        return str(error)
    weights = state.average.weights if state.average else state.adapter.state()
    return {"losses": state.losses, "computed": state.computed, "digest": content_digest(weights)}

def work(processes):
    found = {"added": added_up(processes), "agreed": agreed(processes)}
    for name, (settings, job) in jobs.items():
        found[name] = trained(processes, name, settings, **job)
    return found

for rank in range(count):
    if os.fork() == 0:
        die_with_parent()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(ACCELERATE_USE_CPU="true", SDBUILD_MEETING=(folder / "meeting").as_uri())
        (folder / str(rank)).write_text(json.dumps(work(join())))
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)))
"""


def together(folder: Path, count: int, jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the toy in several processes; return what each of them found."""
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(count), json.dumps(jobs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        cwd=Path(__file__).parents[2],
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads((folder / str(rank)).read_text()) for rank in range(count)]


def test_three_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    uneven: dict[str, Any] = {"batch": 5, "accumulate": 2, "ema": {"decay": 0.9}, "noise": {"perturbation": 0.1}}
    few: dict[str, Any] = {"batch": 2, "optimizer": "adafactor", "checkpoint_every": 1}
    jobs = {
        "uneven": (uneven, {}),
        "few": (few, {}),
        "resumed": (few, {"begun": 4}),
        "broken": (few | {"checkpoint_every": 100}, {"broken": "3"}),
    }
    found = together(tmp_path / "three", 3, jobs)
    for name, settings in (("uneven", uneven), ("few", few)):
        alone = toy.run(tmp_path / name, toy.settings_of(**settings))
        assert len({each[name]["digest"] for each in found}) == 1, "processes drifted apart"
        for each in found:
            assert each[name]["losses"] == pytest.approx(alone.losses, abs=1e-6)
    assert [each["resumed"]["computed"] for each in found] == [6, 6, 6]
    assert all(each["resumed"]["digest"] == each["few"]["digest"] for each in found)
    assert all(each["resumed"]["losses"] == each["few"]["losses"] for each in found)
    assert sorted(path.name for path in (tmp_path / "three/few").iterdir()) == [
        f"step-{step:09d}.safetensors" for step in (9, 10)
    ]

    # Losses of all records, and gradients of all processes: one has none, one parameter has none anywhere.
    for each in found:
        assert each["added"] == [[0, 1, 2, 3, 4], [1, 1], [3, 3], None]

    refused = "process 3 of 3 has another recipe, base, pictures or captions than the first process"
    assert [each["agreed"] for each in found] == [None, None, refused]
    # Everyone hears of a loss that is no number, whoever computed it.
    words = {each["broken"].split("\n")[0] for each in found}
    assert words == {"training broke down at step 2 of 10: the loss is nan for '' (3)"}


def test_shares_cover_all_records_and_draws_depend_on_where_they_begin() -> None:
    for records in range(1, 9):
        shares = [parallel.Processes(device=toy.CPU, rank=rank, count=3).share(records) for rank in range(3)]
        assert [index for start, end in shares for index in range(start, end)] == list(range(records))
        sizes = [end - start for start, end in shares]
        assert max(sizes) - min(sizes) <= 1
    assert [parallel.Processes(device=toy.CPU, rank=rank, count=3).place(7) for rank in range(3)] == ["", "2", "4"]


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4"), (parallel.MEETING, "tcp://there:1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StepError, match=r"train\.processes 4 needs 2 GPUs on this machine, which has 1; lower it"):
        parallel.join()
