"""Models of the Hugging Face hub by name: where its cache has them, and how they get there; needs no torch.

The cache is read by its layout, so that looking for a model needs neither a package nor the network.
"""

from __future__ import annotations

import os
import re
from glob import escape
from pathlib import Path

from sprunec.checkpoint.layouts import CONFIG, checkpoint_names, weight_files
from sprunec.durable import read_file
from sprunec.errors import InputError, is_disk

MAIN, TOKENIZER = "main", "tokenizer.json"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")
_COMMIT = re.compile("[0-9a-f]{40}")
_TEXTS = (
    ".json",
    ".txt",
    ".jinja",
    ".py",
    "tokenizer.model",
    "README.md",
    "LICENSE",
    "NOTICE",
)  # a model's small files


def is_hub_name(text: str) -> bool:
    """Tell whether a text could be a model's name on the hub, ORGANIZATION/NAME."""
    return _NAME.fullmatch(text) is not None and len(text.partition("/")[2]) <= 96


def hub_cache() -> Path:
    """Say where the hub's library keeps what it has fetched: as its environment variables have it."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(cache)).expanduser()


def find_snapshot(name: str, revision: str = MAIN) -> Path | None:
    """Find the directory of a model in the cache, whole or not; None where this revision is not there.

    Args:
        revision: a branch, a tag or a commit.
    """
    folder, commit = hub_cache() / f"models--{name.replace('/', '--')}", revision
    if not _COMMIT.fullmatch(commit):
        reference = folder / "refs" / revision
        commit = read_file(reference).strip() if reference.is_file() else ""
    found = folder / "snapshots" / commit
    return found if _COMMIT.fullmatch(commit) and found.is_dir() else None


def snapshot_origin(directory: Path) -> dict[str, str] | None:
    """Tell which model of the hub, and which commit of it, a directory of the cache is; None for any other."""
    folder = directory.absolute().parent
    kind, *name = folder.parent.name.split("--")
    if folder.name != "snapshots" or kind != "models" or not _COMMIT.fullmatch(directory.name):
        return None
    return {"name": "/".join(name), "commit": directory.name}


def is_whole(directory: Path) -> bool:
    """Tell whether a config and all files of a checkpoint are there."""
    try:
        return all(file.is_file() for file in (directory / CONFIG, *weight_files(directory)))
    except InputError:
        return False


def fetch_snapshot(name: str, revision: str = MAIN, *, quiet: bool = False) -> Path:
    """Give a model's directory in the cache, and fetch what is not there yet; what is whole is not asked for again.

    Raises:
        InputError: the hub has no such model or revision, cannot be reached, or its package is not installed.
    """
    found = find_snapshot(name, revision)
    if found is not None and is_whole(found) and (found / TOKENIZER).is_file():
        return found
    try:
        return _fetch(name, revision, quiet)
    except Exception as error:  # of the network, the hub, or either one's packages
        if found is not None and is_whole(found):
            return found  # it may have no such tokenizer
        raise _told(name, revision, error) from error


def _fetch(name: str, revision: str, quiet: bool) -> Path:
    """Fetch the config, one checkpoint and the small files beside it, with a bar of progress for each."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet:
        disable_progress_bars()
    listed = HfApi().model_info(name, revision=revision).siblings or []
    names = [each.rfilename for each in listed if "/" not in each.rfilename]
    wanted = [*checkpoint_names(names), *(each for each in names if each.endswith(_TEXTS))]
    return Path(snapshot_download(name, revision=revision, allow_patterns=[escape(each) for each in wanted]))


def _told(name: str, revision: str, error: Exception) -> InputError:
    """Say what stands in the way of fetching, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        message, hint = f"to fetch {name} needs the package huggingface_hub", "pip install 'sprunec[hf]'"
        return InputError.at(name, message, hint, "missing-package")
    if is_disk(error) and error.filename:
        return InputError.of_disk(error.filename, error, f"{name} cannot be fetched")
    kinds = {each.__name__ for each in type(error).__mro__}
    reasons = {
        "RevisionNotFoundError": (f"the model has no revision {revision}", "give one of its branches, tags or commits"),
        "GatedRepoError": ("the model is gated", "accept its terms on its page, and log in with hf auth login"),
        "RepositoryNotFoundError": ("the hub has no such model", "check the name; for a private one hf auth login"),
    }
    for kind, (message, hint) in reasons.items():
        if kind in kinds:
            return InputError.at(name, message, hint, "not-on-hub")
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    message = f"the model is not in {hub_cache()}, and cannot be fetched: {why}"
    hint = "go online, or copy the model's directory here and name that; HF_HOME says where the cache is"
    return InputError.at(name, message, hint, "not-fetched")
