"""manifest.json, the note beside an artifact's files: what made them, the sha256 of each, and of the note itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sprunec.durable import naming

MANIFEST = "manifest.json"
LARGEST = 64 * 1024 * 1024


def hashed(document: Mapping[str, Any], key: str = "sha256", digits: int = 64, indent: int | None = 1) -> str:
    """Write JSON with, last and under `key`, the hash of all before it."""
    own = hashlib.sha256(json.dumps(document, indent=indent).encode()).hexdigest()[:digits]
    return json.dumps({**document, key: own}, indent=indent)


def unhashed(text: str, key: str = "sha256", digits: int = 64, indent: int | None = 1) -> dict[str, Any] | None:
    """Read what `hashed` wrote, to the byte; else None."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    has_hash = isinstance(found, dict) and found.pop(key, None) is not None
    return found if has_hash and text == hashed(found, key, digits, indent) else None


def read_hashed(path: Path) -> dict[str, Any] | None:
    """Read a file of what `hashed` wrote, to the byte; None if it is another, or not there.

    Raises:
        OSError: it is there and cannot be read: that may pass, and is no reason to make anything again.
    """
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    with naming(path):
        return unhashed(path.read_bytes().decode("utf-8", errors="replace"))


def read_manifest(directory: Path, digest: str) -> dict[str, Any] | None:
    """Read the manifest of the artifact with this digest; None unless it is what was written for it; see above."""
    manifest = read_hashed(directory / MANIFEST) or {}
    files = manifest.get("files")
    if manifest.get("digest") != digest or not isinstance(files, dict) or not isinstance(manifest.get("metrics"), dict):
        return None
    good = all(_is_inside(name) and re.fullmatch("[0-9a-f]{64}", str(content)) for name, content in files.items())
    return manifest if good else None


def _is_inside(name: str) -> bool:
    """Tell whether a name stays in the directory that it is a name of."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def unexpected_files(directory: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """List what is in an artifact and no part of it: a name once, and not everything below it."""
    files = {directory / name for name in (*manifest["files"], MANIFEST)}
    folders = {parent for file in files for parent in file.parents}
    for place, names, others in os.walk(directory):
        for path in (Path(place, name) for name in (*names, *others)):
            if path not in files and path not in folders:
                yield path
        names[:] = [name for name in names if Path(place, name) in folders]
