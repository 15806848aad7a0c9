"""Where a base lies: in the package, in a folder, or in the local cache of the Hugging Face Hub. Light."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from sdbuild.errors import DataError
from sdbuild.families.layout import INDEX, SUFFIXES, VARIANTS, lacking, read_layout

BASES = Path(__file__).parent.parent / "bases"
"""Folder of the embedded bases."""
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""What is read of a base; nothing else is downloaded (no code, no safety checker)."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(model: str, revision: str | None, project: Path) -> Path | None:
    """Find a base on this machine, without network.

    Args:
        model: an embedded base's name, a folder (absolute or in the project), or a hub id ``owner/name``.
        revision: branch, tag or commit of a hub id.
        project: root of the project.

    Returns:
        The folder, or None for a hub id that `fetch` has to download.

    Raises:
        DataError: there is nothing of that name, and it is no hub id.
    """
    folder = _local(model, project)
    if folder is not None:
        return folder
    _require_hub_id(model)
    snapshot = _snapshot(model, revision)
    return snapshot if snapshot is not None and is_whole(snapshot) else None


def fetch(model: str, revision: str | None, project: Path) -> Path:
    """Find a base, downloading it where it is a hub id that is not complete on this machine.

    Only safetensors, configurations and vocabularies are fetched. Access tokens are those of the hub's own client
    (``hf auth login`` or ``HF_TOKEN``).

    Raises:
        DataError: there is no such base, or it may not or cannot be downloaded; one line with the remedy.
    """
    folder = locate(model, revision, project)
    if folder is not None:
        return folder
    folder = _download(model, revision)
    if not is_whole(folder):
        read_layout(folder)
        absent = ", ".join(lacking(folder, COMPONENTS))
        raise DataError(f"base {model}: the repository lacks {absent}; choose one in diffusers layout with safetensors")
    return folder


def commit_of(folder: Path) -> str | None:
    """The commit of a base in the hub's cache; None for one that lies elsewhere."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def is_whole(folder: Path) -> bool:
    """Whether a downloaded base has all its files: a killed download leaves some."""
    return (folder / INDEX).is_file() and not lacking(folder, COMPONENTS)


def embedded() -> list[str]:
    """Names of the embedded bases."""
    return sorted(path.parent.name for path in BASES.glob(f"*/{INDEX}"))


def hub_cache() -> Path:
    """Folder of the hub's local cache, as its client finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _local(model: str, project: Path) -> Path | None:
    if model in embedded():
        return BASES / model
    folder = project / Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise DataError(f"base {model}: is a single file; convert it to a folder in diffusers layout")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise DataError(f"base {model}: there is no such folder")
    return None


def _require_hub_id(model: str) -> None:
    if _HUB_ID.fullmatch(model):
        return
    names = embedded()
    near = difflib.get_close_matches(model, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    known = f" ({', '.join(names)})" if names and not near else ""
    raise DataError(f"base {model}: is neither an embedded base{known}, a folder nor a hub id owner/name{hint}")


def _snapshot(model: str, revision: str | None) -> Path | None:
    root = hub_cache() / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    if not _COMMIT.fullmatch(name):
        ref = root / "refs" / name
        if not ref.is_file():
            return None
        name = ref.read_text(encoding="utf-8").strip()
    folder = root / "snapshots" / name
    return folder if folder.is_dir() else None


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    patterns = [INDEX, *(f"{component}/*{ending}" for component in COMPONENTS for ending in SUFFIXES)]
    variants = [f"*{mark}{end}*" for mark in VARIANTS for end in ".-"]
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)  # of whatever library the client speaks through
    word = f"base {model}"
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=variants))
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{model}"
        raise DataError(f"{word}: needs its licence accepted at {page}, then `hf auth login` or HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise DataError(f"{word}: the hub has no such model, or it is private (`hf auth login` or HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{word}: has no revision {revision}; leave it out, or give a commit of its history") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise DataError(
            f"{word}{at}: is not on this machine and the hub cannot be reached; connect and retry"
        ) from None
    except errors.HfHubHTTPError as error:
        raise DataError(f"{word}{at}: the hub refused ({_first_line(error)}); build again later") from error
    except (OSError, transport) as error:
        raise DataError(f"{word}{at}: cannot be downloaded ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
