"""images: which pictures there are, whole and readable, with their bucket and split."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from os.path import splitext
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.data.examine import examine
from sdbuild.data.formats import format_of
from sdbuild.data.grouped_problems import group_similar
from sdbuild.data.listing import Listing, Sidecars, ending, nfc, no_pictures, scan
from sdbuild.data.masks import ALPHA, pair
from sdbuild.data.pixelcache import CACHE_NAME, PixelCache
from sdbuild.data.placing import Findings, hold_out, place
from sdbuild.data.records import SkippedImage, write_images
from sdbuild.errors import DataError, Problem
from sdbuild.steps.contract import Context, Inputs, Items
from sdbuild.storage.regular_files import special_at


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `images.jsonl`; computed are the pictures that had to be decoded.

    Raises:
        DataError: pictures or datasets are unusable; lists all of them.
    """
    findings = Findings()
    found, masks = _find(spec["datasets"], inputs.project, findings)
    examined = examine(
        {path for _, path in found},
        masks,
        inputs.project,
        PixelCache(context.items / CACHE_NAME),
        spec["background"],
        lambda done, total: context.progress(done, total, "pictures"),
    )
    usable = []
    for dataset, path in found:
        if path in examined.pixels:
            usable.append((dataset, path, examined.pixels[path]))
        else:
            problem = examined.problems[path]
            findings.pictures[dataset, problem.file or path] = problem
    records = place(usable, masks, spec, findings)
    skip = spec["on_error"] == "skip"
    if skip or not findings.pictures:
        records = hold_out(records, spec["datasets"], findings)
    if skip:
        _nothing_left(spec["datasets"], {record.dataset for record in records}, findings)
    else:
        findings.datasets += group_similar(dict.fromkeys(findings.pictures[key] for key in sorted(findings.pictures)))
    if findings.datasets:
        raise DataError(findings.datasets)
    skipped = [
        SkippedImage(path=path, dataset=dataset, skipped=problem.message)
        for (dataset, path), problem in sorted(findings.pictures.items(), key=_place)
    ]
    for row in skipped:
        findings.note("skipped, as they cannot be used: images.jsonl says why", row.path)
    for warning in findings.warnings():
        context.warn(warning)
    write_images(out / "images.jsonl", [*records, *skipped])
    return Items(total=len(records), computed=examined.decoded)


def _find(
    datasets: Sequence[Mapping[str, Any]], project: Path, findings: Findings
) -> tuple[list[tuple[int, str]], dict[str, str]]:
    """Dataset and project path of every picture, and the mask of each that has one."""
    found: list[tuple[int, str]] = []
    masks: dict[str, str] = {}
    for index, dataset in enumerate(datasets):
        folder = _folder(dataset)
        try:
            listing = scan(project / folder)
        except FileNotFoundError:
            message = "there is no such folder; make it, or mend datasets in the recipe"
            findings.datasets.append(Problem(file=folder, message=message))
            continue
        except NotADirectoryError:
            findings.datasets.append(Problem(file=folder, message="is a file; a dataset is a folder of pictures"))
            continue
        except OSError as error:
            findings.datasets.append(Problem(file=folder, message=f"cannot be listed ({error.strerror})"))
            continue
        for relative, reason in _left_out(listing, project / folder):
            findings.note(reason, f"{folder}/{relative}")
        paired = pair(listing.pictures, dataset.get("mask"))
        bare = [relative for relative in paired.pictures if "mask" in dataset and relative not in paired.masks]
        for message, paths in (
            ("left out: a mask whose picture is not there", paired.alone),
            ("left out: another file is the mask of the same picture", paired.twice),
            ("without a mask, learned as a whole", bare),
        ):
            for relative in paths:
                findings.note(message, f"{folder}/{relative}")
        masks |= {
            f"{folder}/{relative}": mask if mask == ALPHA else f"{folder}/{mask}"
            for relative, mask in paired.masks.items()
        }
        if not paired.pictures:
            findings.datasets.append(Problem(file=folder, message=no_pictures()))
        found += [(index, f"{folder}/{relative}") for relative in paired.pictures]
    return found, masks


def _left_out(listing: Listing, folder: Path) -> Iterator[tuple[str, str]]:
    """Pictures that are not read, with the reason: by their ending, or by their content where the ending hides it."""
    sidecars = Sidecars(listing.sidecars)
    read = {splitext(nfc(relative))[0] for relative in listing.pictures}
    hidden = [relative for relative in listing.others if _is_picture_inside(folder / relative)]
    for relative in sorted((*listing.unread, *hidden)):
        kind = ending(relative)
        if relative in hidden:
            reason = "a picture without the file extension of one; rename it, e.g. to .png or .jpg"
        elif (folder / relative).is_file():
            reason = f"{kind} is not read; save as PNG or JPEG"
        elif special := special_at(folder / relative):
            reason = f"{special} is no picture"
        else:
            reason = "links to folders are not followed"
        mine = sidecars.of(relative) and splitext(nfc(relative))[0] not in read
        yield relative, f"left out{' with its caption' if mine else ''}: {reason}"


def _is_picture_inside(path: Path) -> bool:
    """Whether a file of any name begins as pictures do."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and format_of(file.read(64)) is not None


def _nothing_left(datasets: Sequence[Mapping[str, Any]], used: set[int], findings: Findings) -> None:
    """Where every picture was skipped there is nothing to go on with: say so, and why."""
    for index, dataset in enumerate(datasets):
        problems = [problem for (at, _), problem in sorted(findings.pictures.items(), key=_place) if at == index]
        if problems and index not in used:
            message = f"none of its {len(problems)} pictures can be used"
            findings.datasets += [Problem(file=_folder(dataset), message=message), *problems]


def _place(item: tuple[tuple[int, str], Problem]) -> tuple[int, str]:
    return item[0]


def _folder(dataset: Mapping[str, Any]) -> str:
    return PurePosixPath(dataset["path"]).as_posix()
