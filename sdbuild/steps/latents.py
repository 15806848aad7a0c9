"""The latents step: every picture in its bucket through the base's VAE.

Each picture is encoded alone, so an item's bytes do not depend on what else is computed, while threads decode the next
ones. Memory holds the pictures in flight and one window of the item store. Importing this module is light.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild import families
from sdbuild.data.buckets import Size, unfit
from sdbuild.data.items import ItemStore, ShardReader, export, reuse
from sdbuild.data.masks import ALPHA
from sdbuild.data.placing import Findings
from sdbuild.data.records import ImageRecord, iter_images, read_class_pictures, write_lines
from sdbuild.data.wanted import WantedLatent, wanted_latents
from sdbuild.errors import DataError, Problem
from sdbuild.families.digest import read_digest
from sdbuild.steps.contract import Context, Inputs, Items

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from torch import Tensor

    from sdbuild.families.contract import LatentEncoder

    Pixels = tuple[NDArray[uint8], NDArray[uint8] | None]

COMPONENTS = ("vae",)
THREADS = 2
AHEAD = 8
"""Pictures that are decoded before the VAE asks for them."""


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `latents/`: item shards, and `index.jsonl` with the key of each picture's items.

    Raises:
        DataError: a picture changed since it was scanned, or a bucket does not suit the base.
    """
    assert inputs.images is not None
    assert inputs.base is not None
    records = (row for row in iter_images(inputs.images) if isinstance(row, ImageRecord))
    digest = read_digest(spec, inputs.base, COMPONENTS)
    own = wanted_latents(records, spec, digest)
    drawn = read_class_pictures(inputs.prior, inputs.project) if inputs.prior else []
    prior = wanted_latents(drawn, spec, digest)
    wanted = own | prior
    store = ItemStore(context.items / "latents", warn=context.warn)
    previous = reuse(context.previous / "latents")
    missing = store.missing(wanted, previous)
    if missing:
        encoder = _load(inputs.base, spec, [wanted[key].placement.fit.bucket for key in missing])
        chosen = [(key, wanted[key]) for key in missing]
        items = _encode(chosen, encoder, inputs.project, spec["background"], context)
        store.fill(_with_geometry(items, wanted) if families.describe(inputs.base).geometry else items)
    export(wanted, out / "latents", [previous, store])
    for word in _opaque(own, ShardReader(out / "latents")):
        context.warn(word)
    write_lines(out / "latents" / "index.jsonl", [*_index(own), *({**row, "prior": True} for row in _index(prior))])
    return Items(total=len(wanted), computed=len(missing))


def _index(wanted: Mapping[str, WantedLatent]) -> list[dict[str, Any]]:
    """Which item is whose; where datasets see the same pixels in different ways, also which datasets see it so."""
    rows = [
        {"digest": item.placement.record.digest, "flip": item.flip, "key": key}
        | ({} if item.placement.datasets is None else {"datasets": item.placement.datasets})
        for key, item in wanted.items()
    ]
    return sorted(rows, key=lambda row: (row["digest"], row["flip"], row["key"]))


def _opaque(wanted: Mapping[str, WantedLatent], latents: ShardReader) -> list[str]:
    """Say which pictures were to be masked by their transparency and have none."""

    def masked(key: str) -> bool:
        part = latents.find(key)
        return part is not None and any(tensor.name == "mask" for tensor in part.tensors)

    findings = Findings()
    by_path = {item.placement.record.path: key for key, item in wanted.items() if item.placement.record.mask == ALPHA}
    for path, key in sorted(by_path.items()):
        if not masked(key):
            findings.note("without transparency for mask: {from: alpha}, learned as a whole", path)
    return findings.warnings()


def _load(base: Path, spec: Mapping[str, Any], buckets: Iterable[Size]) -> LatentEncoder:
    from accelerate import PartialState

    from sdbuild.families.contract import DTYPES

    family = families.load(base)
    if message := unfit(buckets, family.multiple):
        raise DataError([Problem(field="images.buckets.step", message=message)])
    encoder = family.load_vae(DTYPES[spec["dtype"]], str(PartialState().device))
    if spec.get("vae_tiling"):
        network: Any = encoder.module
        network.enable_tiling()
    return encoder


def _encode(
    chosen: Sequence[tuple[str, WantedLatent]], encoder: LatentEncoder, project: Path, background: str, context: Context
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    import torch

    context.progress(0, len(chosen), "latents")
    pictures = _ahead((item for _, item in chosen), project, background)
    for done, ((key, _), (picture, mask)) in enumerate(zip(chosen, pictures, strict=True), start=1):
        mean, logvar = encoder.encode(as_input(picture))
        item = {"mean": mean, "logvar": logvar}
        if mask is not None:
            item["mask"] = _shrink(torch.from_numpy(mask), mean)
        yield key, item
        context.progress(done, len(chosen), "latents")


def as_input(picture: NDArray[uint8]) -> Tensor:
    """Turn RGB [H, W, 3] into what a VAE encodes: float32 [1, 3, H, W] in [-1, 1]."""
    import torch

    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def _with_geometry(
    items: Iterable[tuple[str, dict[str, Tensor]]], wanted: Mapping[str, WantedLatent]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Add what some families see beside the latent: int64 [6], see `WantedLatent.geometry`."""
    import torch

    for key, item in items:
        yield key, {**item, "geometry": torch.tensor(wanted[key].geometry)}


def _shrink(mask: Tensor, latent: Tensor) -> Tensor:
    """Average a mask [H, W] of bytes over the pixels of each latent place: float32 [1, h, w] in [0, 1]."""
    from torch.nn.functional import adaptive_avg_pool2d

    return adaptive_avg_pool2d(mask[None].float() / 255, (latent.shape[-2], latent.shape[-1]))


def _ahead(wanted: Iterable[WantedLatent], project: Path, background: str) -> Iterator[Pixels]:
    """Decode pictures in order, some ahead of their use."""
    pending: deque[Future[Pixels]] = deque()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
    try:
        for item in wanted:
            pending.append(pool.submit(read_pixels, item, project, background))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_pixels(item: WantedLatent, project: Path, background: str) -> Pixels:
    """Decode one picture into its bucket: RGB [height, width, 3], and its mask [height, width] if it has one.

    Raises:
        DataError: it is not the picture that was scanned.
    """
    from sdbuild.data.pictures import fit, open_masked, pixel_digest
    from sdbuild.data.pixel_budget import PIXEL_BUDGET

    record = item.placement.record
    with PIXEL_BUDGET.held():
        image, mask = open_masked(project, record.path, record.mask, background)
        if pixel_digest(image, mask) != record.digest:
            raise DataError([Problem(file=record.path, message="changed while it was being built; build again")])
        found = [None if each is None else fit(each, item.placement.fit) for each in (image, mask)]
        del image, mask
    pixels, counts = (each if each is None or not item.flip else each[:, ::-1].copy() for each in found)
    assert pixels is not None
    return pixels, counts
