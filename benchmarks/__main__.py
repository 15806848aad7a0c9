"""All benchmarks: `python -m benchmarks`."""

from __future__ import annotations

import sys

from benchmarks import (
    busy,
    captions,
    latents,
    memory,
    noop_pictures,
    noop_steps,
    one_picture,
    probe,
    push,
    recording,
    training,
)
from benchmarks.harness import main

sys.exit(
    main(
        noop_pictures.measure,
        noop_steps.measure,
        one_picture.measure,
        recording.measure,
        push.measure,
        latents.measure,
        captions.measure,
        training.measure,
        busy.measure,
        memory.measure,
        probe.measure,
    )
)
