"""Which key goes to which server: a recipe may come from others, so the user's own environment decides. Light."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from sdbuild.errors import DataError, Problem

ALLOWED = "SDBUILD_KEYS"
"""Environment variable of pairs `VARIABLE=https://host`, separated by spaces: the keys that may go to other servers."""
OPENAI = "OPENAI_API_KEY"
_HOME = "https://api.openai.com"
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(https?://\S+)")
_PORTS = {"http": 80, "https": 443}


def server_of(settings: Mapping[str, Any]) -> str | None:
    """Address of the server that is asked; None for OpenAI's own."""
    return settings.get("base_url") or os.environ.get("OPENAI_BASE_URL") or None


def is_sent(settings: Mapping[str, Any]) -> bool:
    """Whether the key that a captioner names goes to its server.

    OpenAI's key goes to OpenAI and to `OPENAI_BASE_URL`, which the user has set; every other pair has to be allowed.

    Raises:
        DataError: the recipe names a key of its own, which may not go there; or `SDBUILD_KEYS` is no list of pairs.
    """
    variable, address = settings["key_variable"], server_of(settings) or _HOME
    trusted = {_origin(_HOME), _origin(os.environ.get("OPENAI_BASE_URL") or _HOME)}
    if (variable == OPENAI and _origin(address) in trusted) or (variable, _origin(address)) in _allowed():
        return True
    if variable == OPENAI:
        return False
    message = f"{variable} may not be sent to {shown(address)}, since recipes come from others; {remedy(settings)}"
    raise DataError([Problem(field="caption.key_variable", message=message)])


def withheld(settings: Mapping[str, Any]) -> str | None:
    """Warn where OpenAI's key is set but not sent, since the server is another; None otherwise."""
    address = server_of(settings)
    if settings["key_variable"] != OPENAI or not os.environ.get(OPENAI) or address is None or _is_here(address):
        return None
    try:
        if is_sent(settings):
            return None
    except DataError:
        return None  # a problem
    return f"{OPENAI} is not sent to {shown(address)}, which is asked without a key; {remedy(settings)}"


def problems(captions: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
    """What is wrong with the keys of captioners, by the numbers of their datasets."""
    for number, settings in captions.items():
        if settings.get("from") == "openai":
            try:
                is_sent(settings)
            except DataError as error:
                for each in error.problems:
                    yield Problem(field=f"datasets[{number}].{each.field}", message=each.message)


def remedy(settings: Mapping[str, Any]) -> str:
    """How to allow a key for a server."""
    address = shown(server_of(settings) or _HOME)
    pair = f'{ALLOWED}="{settings["key_variable"]}={address}"'
    return f"if you trust that server with it, allow it on this machine: export {pair}"


def shown(address: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _allowed() -> set[tuple[str, tuple[str, str, int | None]]]:
    found = set()
    for word in os.environ.get(ALLOWED, "").replace(",", " ").split():
        pair = _PAIR.fullmatch(word)
        if pair is None:
            name = word.partition("=")[0]  # what follows may be a key
            message = f"{ALLOWED}: {name!r} is not followed by =https://host; write pairs such as MY_KEY=https://host"
            raise DataError([Problem(field="caption.key_variable", message=message)])
        found.add((pair[1], _origin(pair[2])))
    return found


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme.lower(), (parts.hostname or "").lower(), port or _PORTS.get(parts.scheme.lower())


def _is_here(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
