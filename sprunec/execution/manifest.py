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
OWN_HASH = "sha256"


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Write the manifest as it stands in the file: last, the hash of all before it."""
    own = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    return json.dumps({**manifest, OWN_HASH: own}, indent=1)


def read_manifest(directory: Path, digest: str) -> dict[str, Any] | None:
    """Read the manifest of the artifact with this digest; None unless it is, to the byte, what was written for it.

    Raises:
        OSError: it is there and cannot be read: that may pass, and is no reason to make the artifact again.
    """
    manifest = read_hashed(directory / MANIFEST)
    return manifest if manifest and manifest.get("digest") == digest and _is_manifest(manifest) else None


def read_hashed(path: Path) -> dict[str, Any] | None:
    """Read what `manifest_text` wrote, to the byte; else None."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    with naming(path):
        content = path.read_bytes()
    try:
        manifest = json.loads(text := content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    has_hash = isinstance(manifest, dict) and manifest.pop(OWN_HASH, None) is not None
    return manifest if has_hash and text == manifest_text(manifest) else None


def _is_manifest(manifest: Mapping[str, Any]) -> bool:
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("metrics"), dict):
        return False
    return all(_is_inside(name) and re.fullmatch("[0-9a-f]{64}", str(digest)) for name, digest in files.items())


def _is_inside(name: str) -> bool:
    """Tell whether a name stays in the directory that it is a name of."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def unexpected_files(directory: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """List what is in an artifact and no part of it: a name once, and not everything below it."""
    files = {PurePosixPath(name) for name in (*manifest["files"], MANIFEST)}
    folders = {parent for file in files for parent in file.parents}
    for place, names, others in os.walk(directory):
        here = PurePosixPath(Path(place).relative_to(directory).as_posix())
        for name in (*names, *others):
            if here / name not in files | folders:
                yield Path(place) / name
        names[:] = [name for name in names if here / name in folders]
