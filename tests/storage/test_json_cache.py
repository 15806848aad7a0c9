"""JSON caches are whole or count as missing."""

from __future__ import annotations

from pathlib import Path

from sdbuild.storage.json_cache import recall, remember


def test_what_is_remembered_is_whole_or_not_there(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    remember(memory, {"a": [1, "ä\udc80"]})
    whole = memory.read_bytes()
    assert recall(memory) == {"a": [1, "ä\udc80"]}
    for position in range(len(whole)):
        memory.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert recall(memory) is None
        memory.write_bytes(whole[:position])
        assert recall(memory) is None
    memory.unlink()
    memory.mkdir()
    remember(memory, 1)  # a place that cannot be written is no error
    assert recall(memory) is None
