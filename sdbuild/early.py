"""Ctrl-C while modules are loaded: imported before them, it says so in a line. Commands and builds say more."""

from __future__ import annotations

import os
import sys
from types import TracebackType


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os.write(2, b"stopped\n")  # Python ends by the signal then, which shells tell as 130
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_stopped
