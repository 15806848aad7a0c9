"""Memory for decoded pictures is shared among threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from sdbuild.data.pictures import MAX_PIXELS, pixel_digest
from sdbuild.data.pixel_budget import PixelBudget
from tests.tiny import make_pictures


def test_threads_wait_until_there_is_room_and_none_waits_for_itself() -> None:
    budget = PixelBudget(100)
    inside: list[int] = []
    most = 0
    lock = threading.Lock()

    def decode(pixels: int) -> None:
        nonlocal most
        for _ in range(20):
            with budget.held():
                budget.take(pixels)
                with lock:
                    inside.append(pixels)
                    most = max(most, sum(inside) if len(inside) > 1 else 0)
                with budget.held():  # its mask
                    budget.take(1)
                time.sleep(0.0005)
                with lock:
                    inside.remove(pixels)

    threads = [threading.Thread(target=decode, args=(size,)) for size in (10, 10, 40, 60, 99, 500, 30, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert 0 < most <= 100 + len(threads)
    assert budget._used == 0


def test_an_error_gives_room_back() -> None:
    budget = PixelBudget(10)

    def fail() -> None:
        with budget.held():
            budget.take(10)
            raise ValueError

    for _ in range(3):
        with pytest.raises(ValueError):  # noqa: PT011
            fail()
    assert budget._used == 0


def test_a_digest_is_that_of_all_bytes() -> None:
    import hashlib

    paths = [Image.effect_noise(size, 90).convert("RGB") for size in ((7, 5), (3000, 1500), (1, 9))]
    for image in paths:
        whole = hashlib.sha256(f"RGB {image.width}x{image.height}\n".encode() + image.tobytes()).hexdigest()
        assert pixel_digest(image) == whole


SCRIPT = """
import json, re, sys
from pathlib import Path
from sdbuild.data import pixel_budget
pixel_budget.PIXEL_BUDGET.pixels = 25_000_000
from sdbuild.data.examine import examine
from sdbuild.data.pixelcache import PixelCache
folder = Path(sys.argv[1])
def look(names):
    found = examine(names, {}, folder, PixelCache(folder / "pixels.sqlite"), "white", lambda done, total: None)
    assert not found.problems, found.problems
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
names = sorted(path.name for path in folder.glob("big*.png"))
small = look(["0000.png"])
one = look(names[:1])
print(json.dumps([small, one, look(names[1:])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_several_large_pictures_take_no_more_memory_than_one(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1, size=32)
    for number in range(5):
        Image.new("1", (5000 + number, 5000)).save(tmp_path / f"big{number}.png", compress_level=1)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    small, one, several = json.loads(done.stdout)
    assert several - small < 1.5 * (one - small)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    import tracemalloc

    from sdbuild.data.pictures import decode
    from sdbuild.errors import DataError
    from tests.data.files import bomb

    data = bomb()
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^a\.png: has more than 178 million pixels \(.*\); scale it down$"):
        decode(data, background="white", name="a.png")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000 < MAX_PIXELS
    tracemalloc.stop()
