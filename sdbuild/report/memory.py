"""What a training takes, for people: tables, and a chart with a square a gigabyte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PARTS: Mapping[str, str] = {
    "base": "B",
    "adapter": "A",
    "gradients": "G",
    "optimizer": "O",
    "activations": "X",
    "libraries": "L",
    "data": "D",
}
"""Parts of a training's memory, and the letter of each where there is no colour."""
SQUARE = "■ "
GIGABYTE = 1e9

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
Line = list[tuple[str, str]]
"""Pieces of text, each with the name of its style."""


def memory_table(found: Mapping[str, Any]) -> Table:
    """A row a setting, a column a part, in gigabytes; and whether it fits this machine."""
    parts = [part for part in PARTS if any(row["memory"][part] for row in found["settings"])]
    fits = found["bound"] is not None
    columns = ("memory, GB", *parts, "together", *(("fits",) if fits else ()))
    rows = [
        (
            row["name"],
            *(gigabytes(row["memory"][part]) for part in parts),
            gigabytes(row["total"]),
            *((_fits(row["total"], found),) if fits else ()),
        )
        for row in found["settings"]
    ]
    return columns, rows


def _fits(total: int, found: Mapping[str, Any]) -> str:
    if total * (1 - found["margin"]) > found["bound"]:
        return "no"
    return "yes" if total <= found["device"]["free"] else "perhaps"


def chart(found: Mapping[str, Any], *, coloured: bool) -> Iterator[Line]:
    """A line a setting, with as many squares as gigabytes; what they mean comes first."""
    legend: Line = []
    for part, letter in PARTS.items():
        if any(row["memory"][part] for row in found["settings"]):
            legend += [(SQUARE if coloured else f"{letter} ", part), (f"{part}  ", "")]
    yield [("a square is a gigabyte: " if coloured else "a letter is a gigabyte: ", ""), *legend]
    width = max(len(row["name"]) for row in found["settings"])
    for row in found["settings"]:
        line: Line = [(f"{row['name']:<{width}}  ", "")]
        for part, count in squares(row["memory"]).items():
            line.append(((SQUARE if coloured else PARTS[part]) * count, part))
        yield [*line, (f" {gigabytes(row['total'])}", "faint")]


def squares(memory: Mapping[str, int]) -> dict[str, int]:
    """Share out the gigabytes, rounded up, among parts, so that they add up (largest remainders)."""
    total = max(1, math.ceil(sum(memory.values()) / GIGABYTE))
    exact = {part: memory[part] / sum(memory.values()) * total for part in PARTS}
    counts = {part: int(exact[part]) for part in PARTS}
    rest = sorted(PARTS, key=lambda part: counts[part] - exact[part])
    for part in rest[: total - sum(counts.values())]:
        counts[part] += 1
    return counts


def disk_table(found: Mapping[str, Any]) -> Table:
    """A row a step: what it writes, what DVC keeps of it, and what lies in `.sdbuild/`."""
    columns = ("disk, MB", "files or items", "build/", "DVC's cache", ".sdbuild/")
    rows = [
        (
            row["step"] + (" (while it trains)" if row.get("passing") else ""),
            f"{row['count']:,}",
            *(f"{row[place] / 1e6:,.1f}" if row[place] else "" for place in ("out", "cache", "private")),
        )
        for row in found["disk"]
    ]
    sums = (sum(row[place] for row in found["disk"]) for place in ("out", "cache", "private"))
    return columns, [*rows, ("together", "", *(f"{each / 1e6:,.1f}" for each in sums))]


def words(found: Mapping[str, Any]) -> Iterator[str]:
    """What the tables do not say: the batch, the machine, what was measured."""
    largest, device, trained = found["largest"], found["device"], found["parameters"]["trained"]
    many = f"{largest['records']} {'picture' if largest['records'] == 1 else 'pictures'}"
    yield (
        f"{found['name']}: {trained:,} trained parameters; the largest batch is {many} of "
        f"{largest['width']}×{largest['height']}"
    )
    yield from _file(found)
    where = "GPU" if device["kind"] == "cuda" else "processor"
    if device["here"]:
        yield (
            f"predicted for this machine's {where}, which has {gigabytes(device['has'])} GB of memory, "
            f"{gigabytes(device['free'])} GB of it free"
        )
    else:
        yield f"predicted for a {where}, which this machine has not"
    if found["compiled"]:
        yield "train.compile is left out of the prediction; compiled networks take other amounts"


def _file(found: Mapping[str, Any]) -> Iterator[str]:
    """Size of the adapter's file, and what that goes by."""
    sizes: Mapping[str, int] = next((row["files"] for row in found["disk"] if row["step"] == "adapter"), {})
    name, about = f"{found['name']}.safetensors", found["file"]
    if name in sizes:
        form = f" in {about['precision']} (method.save_precision)" if "precision" in about else ""
        targets = about.get("targets")
        said = targets if isinstance(targets, str) else ", ".join(targets or ())
        text = " and text encoders" if "text" in about.get("sides", ()) else ""
        size = f"{sizes[name] / 2**20:,.1f} MiB" if sizes[name] >= 2**20 else f"{sizes[name] / 2**10:.0f} KiB"
        yield f"{name}: {size}{form}" + (f", for targets {said}{text}" if said else "")


def measured(found: Mapping[str, Any]) -> Iterator[str]:
    """What real steps took, or why there were none."""
    real = found["measured"]
    if real is None:
        if not found["weights"]:
            yield "nothing was measured: the base's weights are not on this machine; `doit` brings them"
        return
    settings = found["settings"][0]
    predicted = settings["total"] - settings["memory"]["data"]
    off = predicted / real["memory"] - 1
    yield (
        f"measured: {gigabytes(real['memory'])} GB in real steps (predicted {gigabytes(predicted)} GB, "
        f"{off:+.0%}), {gigabytes(real['loading'])} GB while loading"
    )
    steps = found["steps"]
    whole = f"{steps:,} steps take about {duration(real['seconds'] * steps)}"
    yield f"measured: {real['seconds']:.3g} s a step; {whole} if all are as large"


def gigabytes(size: float) -> str:
    """Bytes as gigabytes, to two digits after the point."""
    return f"{size / GIGABYTE:,.2f}" if size else ""


def duration(seconds: float) -> str:
    """Seconds in the largest units that matter."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def problems(found: Mapping[str, Any]) -> Sequence[str]:
    """What to say where the recipe cannot fit."""
    settings = found["settings"][0]
    if found["bound"] is None or _fits(settings["total"], found) != "no":
        return ()
    fitting = [row["name"] for row in found["settings"][1:] if row["changes"] and _fits(row["total"], found) != "no"]
    helps = f"; these would: {'; '.join(fitting)}" if fitting else ""
    return (f"this recipe does not fit into this machine's memory{helps}",)
