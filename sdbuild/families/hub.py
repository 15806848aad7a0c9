"""Bases from the Hugging Face Hub and its local cache. Importing it is light."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdbuild import families
from sdbuild.errors import DataError
from sdbuild.families.layout import INDEX, SUFFIXES, VARIANTS, WEIGHTS, lacking, read_layout
from sdbuild.storage.phrases import did_you_mean

T5 = ("text_encoder_3", "tokenizer_3")
"""Components that are not downloaded where a recipe leaves T5 out."""
VAE = (".", "vae")
"""Where a repository has its VAE."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


KNOWN = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-xl-refiner-1.0",
    "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/sd-vae-ft-mse",
    "madebyollin/sdxl-vae-fp16-fix",
)
"""Ids of models that many use, to tell a misspelt one."""


def hint(model: str) -> str:
    """The nearest known id, or one that is on this machine, in brackets; empty if it is one itself or none is near."""
    try:
        here = [name.removeprefix("models--").replace("--", "/", 1) for name in os.listdir(hub_cache())]
    except OSError:
        here = []
    known = list(dict.fromkeys([*here, *KNOWN]))
    return "" if model in known else did_you_mean(model, known, cutoff=0.7)


def snapshot(model: str, revision: str | None) -> Path | None:
    """Folder of a hub id in the local cache; None if it is not there. Some of its files may be missing."""
    root = hub_cache() / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    if not _COMMIT.fullmatch(name):
        ref = root / "refs" / name
        if not ref.is_file():
            return None
        name = ref.read_text(encoding="utf-8").strip()
    folder = root / "snapshots" / name
    return folder if folder.is_dir() else None


def download(model: str, revision: str | None, *, variant: str | None = None, t5: bool = True) -> Path:
    """Download a base.

    Only safetensors, configurations and vocabularies are fetched. Access tokens are those of the hub's own client
    (``hf auth login`` or ``HF_TOKEN``).

    Raises:
        DataError: there is no such base, or it may not or cannot be downloaded; one line with the remedy.
    """
    names = [name for name in _components() if t5 or name not in T5]
    ignored = list(_marks(mark for mark in VARIANTS if mark != f".{variant}"))
    if variant is None:
        folder = _download(model, revision, [INDEX, *_files(names)], ignored)
    else:
        weights = [f"{name}/{part}" for name in names for part in (f"*.{variant}.safetensors", f"*.{variant}-*")]
        small = [f"{name}/*{ending}" for name in names for ending in SUFFIXES if ending != ".safetensors"]
        folder = _download(model, revision, [INDEX, *small, *weights], ignored)
        if short := {place.partition("/")[0] for place in missing(folder, variant=variant, t5=t5)}:
            folder = _download(model, revision, [INDEX, *_files(sorted(short))], ignored)
    read_layout(folder)
    if absent := missing(folder, variant=variant, t5=t5):
        short_of = ", ".join(absent)
        message = f"base {model}: the repository lacks {short_of}; choose one in diffusers layout with safetensors"
        copies = "" if variant else ", or name copies that it has in base.variant, such as fp16"
        raise DataError(f"{message}{copies}")
    return folder


def download_outline(model: str, revision: str | None) -> Path:
    """Download all of a base but its weights; as `download`."""
    small = [f"{name}/*{ending}" for name in _components() for ending in SUFFIXES if ending != WEIGHTS]
    return _download(model, revision, [INDEX, *small], list(_marks(VARIANTS)))


def download_vae(model: str, revision: str | None) -> Path:
    """Download a VAE; as `download`."""
    return _download_part(model, revision, VAE, "vae")


def download_refiner(model: str, revision: str | None) -> Path:
    """Download a refiner's UNet; as `download`."""
    return _download_part(model, revision, ("unet",), "refiner")


def download_captioner(model: str, revision: str) -> Path:
    """Download a model that describes pictures; as `download`. Code and pickles stay where they are."""
    endings = (".json", ".txt", ".safetensors", ".model", ".jinja")
    _download(model, revision, [f"*{ending}" for ending in endings], ["*/*"], "captioning model")
    folder = part_folder(model, revision, ["."])
    if folder is None:
        message = f"captioning model {model}: the repository has no config.json with safetensors beside it"
        raise DataError(f"{message}; name another")
    return folder


def _download_part(model: str, revision: str | None, places: Sequence[str], what: str) -> Path:
    ends = ("config.json", "diffusion_pytorch_model*.safetensors*")
    patterns = [end if place == "." else f"{place}/{end}" for place in places for end in ends]
    folder = part_folder(model, commit_of(_download(model, revision, patterns, list(_marks(VARIANTS)))), places)
    if folder is None:
        message = f"base.{what} {model}: the repository has no config.json with safetensors beside it; name another"
        raise DataError(message)
    return folder


def part_folder(model: str, revision: str | None, places: Sequence[str]) -> Path | None:
    """Folder of a component in the local cache, the first of some places; None if it is not whole there."""
    found = snapshot(model, revision)
    folders = [] if found is None else [found / place for place in places]
    return next((folder for folder in folders if not lacking(folder, ["."])), None)


def commit_of(folder: Path | None) -> str | None:
    """The commit of a base in the hub's cache; None for one that lies elsewhere."""
    if folder is None or folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return None
    return folder.name


def is_whole(folder: Path, *, variant: str | None = None, t5: bool = True) -> bool:
    """Whether a downloaded base has all its files: a killed download leaves some."""
    return (folder / INDEX).is_file() and not missing(folder, variant=variant, t5=t5)


def missing(folder: Path, *, variant: str | None = None, t5: bool = True) -> list[str]:
    """Files that a downloaded base lacks; of a base that sdbuild does not know, none."""
    layout = read_layout(folder)
    classes = families.classes(layout)
    optional = families.optional(layout) - layout.components.keys()
    names = [name for name in classes if name not in optional and (t5 or name not in T5)]
    return lacking(folder, names, variant=variant)


def hub_cache() -> Path:
    """Folder of the hub's local cache, as its client finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _components() -> Sequence[str]:
    return sorted({name for description in families.descriptions() for name in description.classes})


def _files(names: Sequence[str]) -> list[str]:
    return [f"{name}/*{ending}" for name in names for ending in SUFFIXES]


def _marks(marks: Iterator[str] | Sequence[str]) -> Iterator[str]:
    return (f"*{mark}{end}*" for mark in marks for end in ".-")


def _download(model: str, revision: str | None, patterns: list[str], ignored: list[str], what: str = "base") -> Path:
    from huggingface_hub import errors, snapshot_download

    transport: type[Exception] = getattr(errors, "HTTPError", OSError)  # of whatever library the client speaks through
    word = f"{what} {model}"
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{model}"
        raise DataError(f"{word}: needs its licence accepted at {page}, then `hf auth login` or HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{word}: the hub has no such model{hint(model)}, or it is private (`hf auth login` or HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{word}: has no revision {revision}; leave it out, or give a commit of its history") from None
    except errors.HFValidationError:
        raise DataError(f"{word}: is no hub id; one is org/name, of letters, digits, -, _ and .") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise DataError(
            f"{word}{at}: is not on this machine and the hub cannot be reached; connect and retry{hint(model)}"
        ) from None
    except errors.HfHubHTTPError as error:
        raise DataError(f"{word}{at}: the hub refused ({_first_line(error)}); build again later") from error
    except (OSError, RuntimeError, transport) as error:  # the client's fast transfers end with a RuntimeError
        raise DataError(f"{word}{at}: cannot be downloaded ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
