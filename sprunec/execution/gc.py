"""What OUT can do without: artifacts that no plan refers to, and what runs that were stopped or damaged left behind."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import read_file, remove
from sprunec.errors import InputError, PassError
from sprunec.execution.lock import alone
from sprunec.execution.manifest import read_hashed
from sprunec.execution.store import PLAN

LEFT_BEHIND = "left behind by a run that was stopped"


def find_garbage(out: Path) -> dict[str, Any]:
    """Find what can go; describe it as `schemas/gc.schema.json` does.

    Raises:
        InputError: no run has been in `out`.
        PassError: a run is in there now, or it is not known any more what one of its plans refers to.
    """
    if not (out / "store").is_dir():
        message = "is no folder of a run" if out.is_dir() else "there is no such folder"
        raise InputError.at(out, message, "give the folder that `sprunec run` worked in, e.g. runs/NAME")
    with alone(out):
        found = _find(out)
        files = {path: [file.lstat() for file in _files(path)] for path in found}
    # A file with another name elsewhere frees nothing; one with two names in here frees its bytes once.
    links = Counter((status.st_dev, status.st_ino) for each in files.values() for status in each)
    entries, counted = [], set[tuple[int, int]]()
    for path, reason in found.items():
        freed = 0
        for status in files[path]:
            key = (status.st_dev, status.st_ino)
            freed += status.st_size if key not in counted and links[key] >= status.st_nlink else 0
            counted.add(key)
        entries.append({"path": str(path), "bytes": freed, "reason": reason})
    return {"out": str(out), "removed": False, "bytes": sum(entry["bytes"] for entry in entries), "entries": entries}


def remove_garbage(out: Path, document: Mapping[str, Any]) -> None:
    """Remove what `find_garbage` has found and still finds.

    Raises:
        PassError: as `find_garbage`.
        OSError: something cannot be removed.
    """
    with alone(out):
        still = _find(out)
        for path in (Path(entry["path"]) for entry in document["entries"]):
            if path in still:
                remove(path)


def _find(out: Path) -> dict[Path, str]:
    """Find what can go, and why it can."""
    aside = dict.fromkeys((path for path in sorted(out.glob(".*")) if _is_aside(path)), LEFT_BEHIND)
    return {**dict(_in_store(out / "store", _referred(out))), **aside}


def _referred(out: Path) -> set[str]:
    """Collect the digests of every plan that has run here, and of the last report."""
    found: set[str] = set()
    for path in sorted((out / "store").glob(PLAN.format("*"))):
        if (plan := read_hashed(path)) is None:
            message = "is damaged: it said what a plan refers to; run the plan again, or remove the file"
            raise PassError(f"{path} {message}")
        found |= {str(digest) for digest in plan.get("digests", ())}
    try:
        found |= {str(entry["digest"]) for entry in json.loads(read_file(out / "report.json"))["passes"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if not found:
            raise PassError(f"{out} has no report.json that can be read: run the plan again first") from error
    return found


def _in_store(store: Path, kept: set[str]) -> Iterator[tuple[Path, str]]:
    for path in sorted(store.iterdir()):
        digest = re.fullmatch(r"(?:events-|partial-)?([0-9a-f]{64})(?:\.jsonl)?", path.name)
        if digest and digest[1] not in kept:
            yield path, "no plan refers to it"
        elif path.name.startswith("partial-") and digest and (store / digest[1]).exists():
            yield path, "saves of a pass that is done"
        elif path.name.startswith("damaged-"):
            yield path, "was found damaged"
        elif path.name.startswith("writing-") or _is_aside(path):
            yield path, LEFT_BEHIND


def _is_aside(path: Path) -> bool:
    """Tell what `durable` and `publish` write before they rename it."""
    return path.name == ".publishing" or re.fullmatch(r"\..+\.\d+", path.name) is not None


def _files(path: Path) -> list[Path]:
    return [path] if path.is_symlink() else [each for each in (path, *path.rglob("*")) if not each.is_dir()]
