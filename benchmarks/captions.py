"""Captions from a server beside the ideal: as many requests under way as allowed, and the server sets the pace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Options, Row, Watch, at_most, folder, main
from benchmarks.project import PYTHON, Steps, bare_project
from tests.captioners.server import KEY
from tests.tiny import make_pictures

REPOSITORY = Path(__file__).parent.parent
LATENCY = 0.05
PARALLEL = 16


def measure(options: Options) -> list[Row]:
    """Caption pictures through a server in a process of its own, which takes 50 ms for each."""
    count, rounds = (48, 1) if options.small else (1000, 3)
    with folder() as root, server() as url, environment(ANTHROPIC_API_KEY=KEY, ANTHROPIC_BASE_URL=url):
        work = bare_project(root / "project")
        make_pictures(work.root / "datasets" / "cats", count, captions=False, size=96)
        caption = {"from": "anthropic", "model": "claude-haiku-4-5", "parallel": PARALLEL}
        work.recipe(
            datasets=[{"path": "datasets/cats", "caption": caption}],
            images={"resolution": 64, "buckets": {"step": 8}},
        )
        steps = Steps(work)
        steps.run("images")
        bare_client(PARALLEL)  # imports it, which takes a second, whatever is asked
        bare: list[tuple[float, float]] = []
        times: list[tuple[float, float]] = []
        watch = Watch()
        for _ in range(rounds):
            watch.look()
            bare_client(count)
            bare.append(watch.look())
            done = steps.run("captions")
            times.append(watch.look())
            assert done.computed == count
    wall, cpu = min(times)  # what other work on the machine adds is no overhead of ours
    client, client_cpu = min(bare)
    ideal = count * LATENCY / PARALLEL
    return [
        at_most(
            f"captions: {PARALLEL} requests at once, over the ideal",
            wall / ideal,
            1.3,
            f"{count:,} pictures in {wall:.3g} s, ideal {ideal:.3g} s, {1000 * cpu / count:.2g} ms CPU a picture",
            f"the client alone, without pictures: {client:.3g} s, {1000 * client_cpu / count:.2g} ms CPU a request",
            f"server: {1000 * LATENCY:g} ms an answer, in a process of its own on the same machine",
        )
    ]


def bare_client(count: int) -> None:
    """Ask a question in words with the provider's client, so many times, as many at once, and nothing else."""
    import anthropic

    left = iter(range(count))
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                if next(left, None) is None:
                    return
            client.messages.create(
                model="claude-haiku-4-5",
                max_tokens=512,
                messages=[{"role": "user", "content": [{"type": "text", "text": "What?"}]}],
            )

    with anthropic.Anthropic(max_retries=0) as client:
        threads = [threading.Thread(target=work) for _ in range(PARALLEL)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextmanager
def server() -> Iterator[str]:
    """Start the server and give its address."""
    command = [PYTHON, "-m", "tests.captioners.server", "--latency", str(LATENCY)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main(measure))
