"""The HTTP client of providers: no redirects, no compression, and a limit on the size of answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx2

from sdbuild.captioners.contract import AskError

MOST = 4 * 1024 * 1024
"""Bytes of an answer; captions have a thousandth of it."""
MOST_OF_BATCH = 256 * 1024 * 1024
"""Bytes of all answers to a batch."""
LONGEST_OF_BATCH = 3600.0
"""Seconds that they may take to arrive."""


def http_client(module: ModuleType) -> Any:
    """The client that a provider's library speaks through.

    Redirects are not followed: they would take pictures and keys to whatever host a server names. Answers come as they
    are, not compressed, so that a small one cannot unpack to a large one.
    """
    return module.DefaultHttpxClient(
        follow_redirects=False, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_bound]}
    )


class _Bounded(httpx2.SyncByteStream):
    """A body that ends with an error where it is too long, or takes too long to arrive."""

    def __init__(self, inner: Any, most: int, then: Any, timeout: float) -> None:
        self._inner, self._most, self._then, self._timeout = inner, most, then, timeout

    def __iter__(self) -> Iterator[bytes]:
        size, started = 0, time.monotonic()
        for chunk in self._inner:
            size += len(chunk)
            if time.monotonic() - started > self._timeout:  # a server that sends a byte now and then never times out
                raise AskError(f"no whole answer within {self._timeout:g} s", "again")
            if size > self._most:
                raise AskError(f"the server's answer has more than {self._most >> 20} MiB", self._then)
            yield chunk

    def close(self) -> None:
        self._inner.close()


def _bound(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise AskError("the server sends compressed answers, though it was asked not to; they are not read", "stop")
    path = response.request.url.path
    of_batch = path.endswith(("/results", "/content"))
    if of_batch:
        response.stream = _Bounded(response.stream, MOST_OF_BATCH, "stop", LONGEST_OF_BATCH)
        return
    timeout = response.request.extensions.get("timeout", {}).get("read")
    response.stream = _Bounded(response.stream, MOST, "skip", LONGEST_OF_BATCH if timeout is None else timeout)
