"""Where a base's files are, whatever a recipe names: one folder in diffusers' layout for all steps. Light.

A base is found without network by `find`; `bring` downloads and converts what is missing. What a recipe changes about
a base (another VAE, other copies of the weights, no T5) is a folder of links below `.sdbuild/bases/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdbuild import families
from sdbuild.errors import DataError, Problem
from sdbuild.families import compose, hub, pickles, single
from sdbuild.families.description import Description
from sdbuild.families.layout import INDEX, WEIGHTS, damages, part_problems, read_config
from sdbuild.recipe.places import config_place, embedded, is_hub_id, is_pickle, place_of


class Source(Protocol):
    """What a recipe says of where its base is; see `recipe.base.Base`."""

    @property
    def model(self) -> str:
        """Embedded base, hub id, folder or file."""

    @property
    def wanted(self) -> str | None:
        """Commit, tag or branch of a hub id."""

    @property
    def variant(self) -> str | None:
        """Mark of the copies of the weights to take."""

    @property
    def family(self) -> str | None:
        """What it has to be."""

    @property
    def vae(self) -> str | None:
        """VAE in place of its own: hub id, folder or file."""

    @property
    def vae_commit(self) -> str | None:
        """Commit that a VAE's hub id was resolved to."""

    @property
    def refiner(self) -> str | None:
        """Model that finishes pictures: hub id or folder."""

    @property
    def refiner_commit(self) -> str | None:
        """Commit that a refiner's hub id was resolved to."""

    @property
    def config(self) -> str | None:
        """Embedded base or folder whose configurations a single file is read with."""

    @property
    def prediction_type(self) -> str | None:
        """What the denoiser predicts."""

    @property
    def t5(self) -> bool:
        """Whether T5 is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commits:
    """What the hub ids of a base were resolved to; None for what is no hub id."""

    model: str | None
    vae: str | None
    refiner: str | None


def find(source: Source, project: Path) -> Path | None:
    """Find a base on this machine, without network and without converting anything.

    Returns:
        Its folder in diffusers' layout, or None for one that `bring` has to download or convert.

    Raises:
        DataError: there is no such base, or it is not what the recipe says it is.
    """
    folder = _main(source, project)
    if folder is None:
        return None
    vae, refiner = _vae(source, project, folder), _refiner(source, project)
    if (vae is None) != (source.vae is None) or (refiner is None) != (source.refiner is None):
        return None
    return _composed(source, folder, vae, refiner, project)


def bring(source: Source, project: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Find a base, downloading and converting what is missing; `say` is told what takes long.

    Raises:
        DataError: there is no such base, it may not or cannot be had, or it is not what the recipe says it is.
    """
    folder = _main(source, project)
    if folder is None:
        if is_hub_id(source.model):
            say(f"downloading the base {source.model}")
            folder = hub.download(source.model, source.wanted, variant=source.variant, t5=source.t5)
        else:
            say(f"converting the base {source.model}")
            folder = _convert(source, project)
    if source.vae is not None and _vae(source, project, folder) is None:
        if is_hub_id(source.vae):
            say(f"downloading the VAE {source.vae}")
            hub.download_vae(source.vae, source.vae_commit)
        else:
            say(f"converting the VAE {source.vae}")
            single.convert_vae(project / source.vae, folder, _private(project))
    if source.refiner is not None and _refiner(source, project) is None:
        say(f"downloading the refiner {source.refiner}")
        hub.download_refiner(source.refiner, source.refiner_commit)
    found = find(source, project)
    assert found is not None, source
    return found


def outline(source: Source, project: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Find a base of which nothing but the weights may be missing; of a hub id nothing else is downloaded.

    Raises:
        DataError: as `bring`.
    """
    folder = find(source, project)
    if folder is not None:
        return folder
    if not is_hub_id(source.model) or place_of(source.model, project) is not None:
        return bring(source, project, say)
    folder = hub.snapshot(source.model, source.wanted)
    known = folder is not None and (folder / INDEX).is_file()
    if folder is None or not known or any(not name.endswith(WEIGHTS) for name in hub.missing(folder, t5=source.t5)):
        say(f"downloading the configuration of the base {source.model}")
        folder = hub.download_outline(source.model, source.wanted)
    return folder


def commits(source: Source, project: Path) -> Commits:
    """The commits at which a base that was brought lies in the hub's cache."""
    found = {
        name: hub.commit_of(hub.snapshot(model, revision))
        for name, model, revision in (
            ("model", source.model, source.wanted),
            ("vae", source.vae, source.vae_commit),
            ("refiner", source.refiner, source.refiner_commit),
        )
        if model is not None and is_hub_id(model) and not (project / model).is_dir()
    }
    return Commits(**{name: found.get(name) for name in ("model", "vae", "refiner")})


def predicts(folder: Path) -> str:
    """What a base predicts, as recipes call it; a kind that is not known is named as its scheduler does."""
    if "transformer" in families.describe(folder).classes:
        return "flow"
    said = str(read_config(folder, "scheduler").get("prediction_type", "epsilon"))
    return {"v_prediction": "v", "sample": "x0"}.get(said, said)


def problems(source: Source, folder: Path) -> list[Problem]:
    """What a recipe says of its base that is not so of the base itself."""
    described = families.describe(folder)
    found = _of_family(source, described)

    def wrong(field: str, message: str) -> None:
        found.append(Problem(field=f"base.{field}", message=message))

    if not source.t5 and "text_encoder_3" not in described.classes:
        wrong("t5", f"{described.title} has no T5; remove it")
    if source.refiner is not None and not described.refinable:
        wrong("refiner", f"{described.title} has no refiner; remove it")
    if source.vae is not None:
        (denoiser,) = families.components(folder, ["denoiser"])
        takes, gives = (
            read_config(folder, denoiser).get("in_channels"),
            read_config(folder, "vae").get("latent_channels"),
        )
        if None not in (takes, gives) and takes != gives:
            wrong("vae", f"gives {gives} channels, and the base takes {takes}; choose a VAE of {described.title}")
    predicts = source.prediction_type
    if predicts is not None:
        own = "flow" if "transformer" in described.classes else None
        own = own or read_config(folder, "scheduler").get("prediction_type", "epsilon")
        if own != predicts:
            wrong("prediction_type", f"is {predicts}, but the base says {own}; mend or remove it")
    return found


def damaged(source: Source, project: Path) -> list[Problem]:
    """What is wrong with the files of this machine that a recipe puts beside its base: its VAE and its refiner."""
    found: list[Problem] = []
    for field, name in (("base.vae", source.vae), ("base.refiner", source.refiner)):
        place = None if name is None else place_of(name, project)
        if place is None:
            continue
        if place.is_file():
            wrong = damages(place)
        elif field == "base.vae" and (place / "config.json").is_file():
            wrong = part_problems(place.parent, place.name)
        else:
            wrong = part_problems(place, "vae" if field == "base.vae" else "unet")
        found += (Problem(field=field, message=f"{_relative(each.file, project)} {each.message}") for each in wrong)
    return found


def _relative(file: str | None, project: Path) -> str:
    return str(file).removeprefix(f"{project}/")


def foreseen(source: Source, project: Path) -> list[Problem]:
    """What will be wrong with a checkpoint in one file that is not converted yet, by its header.

    Raises:
        DataError: it cannot be converted.
    """
    place = place_of(source.model, project)
    if place is None or not place.is_file():
        return []
    if is_pickle(source.model):
        return _of_family(source, single.identify(pickles.names_in(place), place))
    return _of_family(source, single.look(place, _configurations(source, project)))


def _of_family(source: Source, described: Description) -> list[Problem]:
    if source.family in (None, described.name):
        return []
    message = f"is {source.family}, but the base is {described.title} ({described.name}); mend or remove it"
    return [Problem(field="base.family", message=message)]


def _private(project: Path) -> Path:
    return project / ".sdbuild" / "bases"


def _main(source: Source, project: Path) -> Path | None:
    """The base as it is, before anything is exchanged."""
    place = place_of(source.model, project)
    if place is None:
        if not is_hub_id(source.model):
            names = embedded()
            known = f" ({', '.join(names)})" if names else ""
            message = f"base {source.model}: is neither an embedded base{known}, a folder nor a hub id owner/name"
            raise DataError(message)
        snapshot = hub.snapshot(source.model, source.wanted)
        whole = snapshot is not None and hub.is_whole(snapshot, variant=source.variant, t5=source.t5)
        return snapshot if whole else None
    if place.is_dir():
        return place
    if not place.is_file():
        raise DataError(f"base {source.model}: there is no such folder or file")
    config = _configurations(source, project)
    return single.converted(place, config, source.prediction_type, _private(project), t5=source.t5)


def _vae(source: Source, project: Path, base: Path) -> Path | None:
    if source.vae is None:
        return None
    place = place_of(source.vae, project)
    if place is None:
        return hub.part_folder(source.vae, source.vae_commit, hub.VAE)
    if place.is_dir():
        return place if (place / "config.json").is_file() else place / "vae"
    if not place.is_file():
        raise DataError(f"base.vae {source.vae}: there is no such folder or file")
    return single.converted_vae(place, base, _private(project))


def _refiner(source: Source, project: Path) -> Path | None:
    """Folder of the refiner's UNet."""
    if source.refiner is None:
        return None
    place = place_of(source.refiner, project)
    if place is None:
        return hub.part_folder(source.refiner, source.refiner_commit, ("unet",))
    if not (place / "unet").is_dir():
        raise DataError(f"base.refiner {source.refiner}: there is no folder unet")
    return place / "unet"


def _configurations(source: Source, project: Path) -> Path | None:
    return None if source.config is None else config_place(source.config, project)


def _convert(source: Source, project: Path) -> Path:
    return single.convert(
        project / source.model,
        _configurations(source, project),
        source.prediction_type,
        _private(project),
        t5=source.t5,
    )


def _composed(source: Source, folder: Path, vae: Path | None, refiner: Path | None, project: Path) -> Path:
    without: tuple[str, ...] = ()
    if not source.t5:
        index = json.loads((folder / INDEX).read_bytes()) if (folder / INDEX).is_file() else {}
        without = tuple(name for name in hub.T5 if (index.get(name) or [None])[0] is not None)
    parts = {name: place for name, place in (("vae", vae), ("refiner/unet", refiner)) if place is not None}
    if not parts and source.variant is None and not without:
        return folder
    return compose.composed(folder, _private(project), parts=parts, variant=source.variant, without=without)
