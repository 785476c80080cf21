"""What OUT can do without: artifacts that no plan refers to, and what runs that were stopped or damaged left behind."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sprunec.durable import read_file, remove
from sprunec.errors import InputError, PassError
from sprunec.execution.lock import alone
from sprunec.execution.store import PLAN, read_references

DIGEST = "[0-9a-f]{64}"
LEFT_BEHIND = "left behind by a run that was stopped"
UNUSED = "no plan refers to it"


@dataclass(frozen=True)
class Garbage:
    """Something that can go; `bytes` is what that frees, so a file with another name elsewhere counts nothing."""

    path: Path
    bytes: int
    reason: str


@dataclass(frozen=True)
class Collection:
    out: Path
    entries: tuple[Garbage, ...]

    def document(self, removed: bool) -> dict[str, Any]:
        """Describe it as `schemas/gc.schema.json` does."""
        entries = [asdict(entry) | {"path": str(entry.path)} for entry in self.entries]
        freed = sum(entry.bytes for entry in self.entries)
        return {"out": str(self.out), "removed": removed, "bytes": freed, "entries": entries}


def find_garbage(out: Path) -> Collection:
    """Find what can go.

    Raises:
        InputError: no run has been in `out`.
        PassError: a run is in there now, or it is not known any more what one of its plans refers to.
    """
    if not (out / "store").is_dir():
        message = "is no folder of a run" if out.is_dir() else "there is no such folder"
        raise InputError.at(out, message, "give the folder that `sprunec run` worked in, e.g. runs/NAME")
    with alone(out):
        return _find(out)


def remove_garbage(out: Path, found: Collection) -> None:
    """Remove what `find_garbage` has found and still finds.

    Raises:
        PassError: as `find_garbage`.
        OSError: something cannot be removed.
    """
    with alone(out):
        still = {entry.path for entry in _find(out).entries}
        for entry in found.entries:
            if entry.path in still:
                remove(entry.path)


def _find(out: Path) -> Collection:
    found = [*_in_store(out / "store", _referred(out))]
    found += [(path, LEFT_BEHIND) for path in sorted(out.glob(".*")) if _is_aside(path)]
    files = {path: list(_files(path)) for path, _ in found}
    links = Counter((status.st_dev, status.st_ino) for each in files.values() for status in each)
    counted: set[tuple[int, int]] = set()

    def freed(status: os.stat_result) -> int:
        key = (status.st_dev, status.st_ino)
        if key in counted or links[key] < status.st_nlink:
            return 0
        counted.add(key)
        return status.st_size

    return Collection(out, tuple(Garbage(path, sum(map(freed, files[path])), why) for path, why in found))


def _referred(out: Path) -> set[str]:
    """Collect the digests of every plan that has run here, and of the last report."""
    found: set[str] = set()
    for path in sorted((out / "store").glob(PLAN.format("*"))):
        if (digests := read_references(path)) is None:
            message = "is damaged: it said what a plan refers to; run the plan again, or remove the file"
            raise PassError(f"{path} {message}")
        found |= digests
    try:
        found |= {str(entry["digest"]) for entry in json.loads(read_file(out / "report.json"))["passes"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if not found:
            raise PassError(f"{out} has no report.json that can be read: run the plan again first") from error
    return found


def _in_store(store: Path, kept: set[str]) -> Iterator[tuple[Path, str]]:
    for path in sorted(store.iterdir()):
        name = path.name
        digest = re.fullmatch(rf"(?:events-|partial-)?({DIGEST})(?:\.jsonl)?", name)
        if digest and digest[1] not in kept:
            yield path, UNUSED
        elif name.startswith("partial-") and digest and (store / digest[1]).exists():
            yield path, "saves of a pass that is done"
        elif name.startswith("damaged-"):
            yield path, "was found damaged"
        elif name.startswith("writing-") or _is_aside(path):
            yield path, LEFT_BEHIND


def _is_aside(path: Path) -> bool:
    """Tell what `durable` and `publish` write before they rename it."""
    return path.name == ".publishing" or re.fullmatch(r"\..+\.\d+", path.name) is not None


def _files(path: Path) -> Iterator[os.stat_result]:
    if path.is_symlink() or not path.is_dir():
        yield path.lstat()
        return
    for place, _, names in os.walk(path):
        for name in names:
            yield (Path(place) / name).lstat()
