"""The HTTP client of providers: no redirects, no compression, and a limit on the size of answers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx2

from sdbuild.captioners.contract import AskError

MOST = 4 * 1024 * 1024
"""Bytes of an answer; captions have a thousandth of it."""
MOST_OF_BATCH = 256 * 1024 * 1024
"""Bytes of all answers to a batch."""


def http_client(module: ModuleType) -> Any:
    """The client that a provider's library speaks through.

    Redirects are not followed: they would take pictures and keys to whatever host a server names. Answers come as they
    are, not compressed, so that a small one cannot unpack to a large one.
    """
    return module.DefaultHttpxClient(
        follow_redirects=False, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_bound]}
    )


class _Bounded(httpx2.SyncByteStream):
    """A body that ends with an error where it is too long."""

    def __init__(self, inner: Any, most: int, then: Any) -> None:
        self._inner, self._most, self._then = inner, most, then

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._inner:
            size += len(chunk)
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
    response.stream = _Bounded(response.stream, MOST_OF_BATCH if of_batch else MOST, "stop" if of_batch else "skip")
