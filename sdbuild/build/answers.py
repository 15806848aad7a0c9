"""How a process that runs a step tells how it ended, and what its parent makes of it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sdbuild.errors import DataError, InputError, Problem, SdbuildError, StepError
from sdbuild.steps.contract import Items

Event = Mapping[str, Any]
"""JSON-able; its `event` is `progress` or `warning`, and at last `done` or `failed`."""
Emit = Callable[[Event], None]
CRASH = "Crash"
"""Kind of an error that no one foresaw."""
INTERRUPTED = "Interrupted"
"""Kind of an end that the user wanted; its message says what was saved, if anything."""


def answer_of(run: Callable[[], Items], told: Callable[[Exception], str]) -> Event:
    """Run a step and return how it ended; `told` says in words what escaped from it."""
    try:
        items = run()
    except InputError as error:
        return {"event": "failed", "kind": type(error).__name__, "problems": [asdict(p) for p in error.problems]}
    except SdbuildError as error:
        return {"event": "failed", "kind": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt as error:
        return {"event": "failed", "kind": INTERRUPTED, "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"event": "failed", "kind": CRASH, "message": told(error)}
    return {"event": "done", "total": items.total, "computed": items.computed}


def error_of(answer: Event) -> SdbuildError | KeyboardInterrupt:
    """Return what a failed step raised."""
    if "problems" in answer:
        problems = [Problem(**problem) for problem in answer["problems"]]
        return DataError(problems) if answer["kind"] == "DataError" else InputError(problems)
    if answer["kind"] == INTERRUPTED:
        return KeyboardInterrupt(answer["message"])
    return StepError(*answer["message"].split("\n"))


def ended(code: int) -> str:
    """Say how a process ended that gave no answer."""
    word = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return word + ("; it may have run out of memory" if code == -signal.SIGKILL else "")
