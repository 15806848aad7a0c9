"""A training in several processes, as a user meets it: the same result, and one end for all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild.build.processes import CONFIG, joining, layout_of
from sdbuild.errors import StepError, UsageError
from sdbuild.plan.model import Base, Step
from tests.build.test_faults import when_training
from tests.build.test_kill import workers
from tests.conftest import BIN, Work, environment

LONG = {"steps": 100, "checkpoint_every": 1, "processes": 2}


def losses(work: Work, file: str = "loss.csv") -> list[float]:
    return [float(line.split(",")[1]) for line in work.read(f"build/cat/{file}").decode().splitlines()[1:]]


def member(work: Work, rank: int) -> int:
    """The process of a training with this number."""
    found = [pid for pid in workers(work) if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    (pid,) = found
    return pid


def all_ended(work: Work) -> bool:
    for _ in range(50):
        if not workers(work):
            return True
        time.sleep(0.1)
    return False


def test_two_processes_take_the_steps_of_one(built: Work, tmp_path: Path) -> None:
    """Batches of three: one process has more of each than the other."""
    settings: dict[str, Any] = {
        "steps": 20,
        "batch": 3,
        "ema": {"decay": 0.5},
        "caption_dropout": 0.2,
        "validate_every": 5,
        "save_every": 8,
    }
    method = {"text_encoder": True}
    two = built.copy(tmp_path / "two")
    built.recipe(train=settings, method=method)
    two.recipe(train={**settings, "processes": 2}, method=method)
    assert built.doit("cat:train").ran == two.doit("cat:train").ran == {"cat:train": 20}
    assert losses(two) == pytest.approx(losses(built), abs=1e-5)
    assert len(losses(two)) == 20
    assert losses(two) != losses(built), "rounding is the same: were there two processes?"
    assert losses(two, "validation.csv") == pytest.approx(losses(built, "validation.csv"), abs=1e-5)
    assert sorted(path.name for path in (two.root / "build/cat/adapters").iterdir()) == [
        "index.json",
        "step-000008",
        "step-000016",
    ]
    assert two.doit("cat:train").ran == {}
    assert two.plan()["cat:train"]["state"] == "fresh"
    assert workers(two) == []


def test_killed_stopped_and_gone_on_with(built: Work, tmp_path: Path) -> None:
    built.recipe(train=LONG)
    whole = built.copy(tmp_path / "whole")
    whole.doit("cat:train")

    code, said = when_training(built, lambda build: os.kill(member(built, 1), signal.SIGKILL))
    assert code == 1, said
    word = "process 2 of 2 was killed by SIGKILL; it may have run out of memory; see .sdbuild/logs/cat/train.log"
    assert word in said
    assert workers(built) == []

    code, said = when_training(built, lambda build: build.send_signal(signal.SIGINT))
    assert code == 130, said
    assert re.search(r"stopped in cat:train after step \d+ of 100, which is saved; doit resumes there", said)
    assert workers(built) == []

    code, said = when_training(built, lambda build: build.kill())
    assert code == -signal.SIGKILL
    assert all_ended(built), "a process outlived its build"

    (done,) = re.findall(r"cat:train  done: (\d+) of 100 computed", built.doit("cat:train").out)
    assert int(done) <= 97, "nothing was kept"
    assert built.adapter() == whole.adapter()
    assert losses(built) == losses(whole)


def test_a_training_that_breaks_down_says_so_once(built: Work) -> None:
    diverging = {"steps": 60, "learning_rate": 10, "optimizer": "sgd", "clip": None}
    built.recipe(method={"alpha": 16_384}, train={**diverging, "processes": 2})
    result = built.doit(code=1)
    assert result.err.count("training broke down at step ") == 1
    assert "sks" in result.err
    assert workers(built) == []


def configuration(folder: Path, **settings: Any) -> Path:
    path = folder / f"{settings.get('machine_rank')}.yaml"
    machine = {"distributed_type": "MULTI_CPU", "use_cpu": True, "num_machines": 2, "num_processes": 2}
    path.write_text(yaml.safe_dump({**machine, **settings}))
    return path


def test_two_machines(built: Work, tmp_path: Path) -> None:
    """Both are this one, but they find each other as others would."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"main_process_ip": "127.0.0.1", "main_process_port": server.getsockname()[1]}
    configurations = [configuration(tmp_path, machine_rank=rank, **place) for rank in (0, 1)]
    built.recipe(train={"steps": 8, "processes": 2})
    build = subprocess.Popen(
        [str(BIN / "doit"), "cat:train"],
        cwd=built.root,
        env=environment({CONFIG: str(configurations[0])}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert build.stdout is not None
        for line in build.stdout:
            if "waits for `sdbuild join cat:train` on machine 1" in line:
                break
        joined = built.run(str(BIN / "sdbuild"), "join", "cat:train", env={CONFIG: str(configurations[1])})
        assert "cat:train: done" in joined.out
        said, _ = build.communicate(timeout=60)
    finally:
        build.kill()
    assert build.returncode == 0, said
    assert len(losses(built)) == 8
    assert (built.root / ".sdbuild/logs/cat/train-machine-1.log").exists()

    result = built.run(str(BIN / "sdbuild"), "step", "cat:train", env={CONFIG: str(configurations[1])}, code=1)
    assert "machine 1; builds run on machine 0, and here `sdbuild join cat:train`" in result.err


PLACE = {"main_process_ip": "10.0.0.1", "main_process_port": 29500}


@pytest.mark.parametrize(
    ("count", "settings", "problem"),
    [
        (3, {"machine_rank": 0, **PLACE}, r"train\.processes 3 cannot be spread evenly over 2 machines"),
        (2, {"machine_rank": 2, **PLACE}, "machine_rank 2 is not less than num_machines 2"),
        (2, {"machine_rank": 0}, "several machines need main_process_ip and main_process_port"),
        (2, {"machine_rank": 0, "nonsense": 1}, "cannot be read: .*unknown keys"),
        (2, {"machine_rank": 0, "compute_environment": "AMAZON_SAGEMAKER"}, "cannot be read|not for machines of one's"),
    ],
)
def test_what_a_configuration_cannot_mean(
    tmp_path: Path, count: int, settings: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG, str(configuration(tmp_path, **settings)))
    with pytest.raises(StepError, match=problem):
        layout_of(count)


def test_what_processes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG, str(configuration(tmp_path, machine_rank=1, gpu_ids="2,3", **PLACE)))
    layout = layout_of(4)
    assert list(layout.ranks) == [2, 3]
    told = layout.environment(3, "here")
    assert {key: told[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SDBUILD_MEETING")} == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "SDBUILD_MEETING": "here",
    }
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("10.0.0.1", "29500")
    assert (told["ACCELERATE_USE_CPU"], told["CUDA_VISIBLE_DEVICES"]) == ("true", "2,3")

    monkeypatch.delenv(CONFIG)
    step = Step(recipe="cat", kind="train", spec={"train": {"processes": 2}}, deps=(), outs=(), base=Base(model="b"))
    with pytest.raises(UsageError, match="joining takes a configuration of accelerate"):
        joining(step)
