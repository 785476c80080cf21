"""What identifies the user's files: their sha256, read once in a process where they are large."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sprunec.durable import file_sha256

MISSING = "missing file"
# A checkpoint is named by the plan, linked by artifacts and verified in the store.
WORTH_KNOWING = 64 * 2**20
_KNOWN: dict[tuple[int, ...], str] = {}


def file_stamp(path: Path) -> tuple[int, int]:
    """Give what changes when a file is written to; zeros if there is none."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)


def file_digest(path: Path) -> str:
    """Hash a file's content, or that of every file in a directory, by sha256; `MISSING` if there is none."""
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
        joined = "\n".join(f"{p.relative_to(path)} {file_digest(p)}" for p in parts)
        return hashlib.sha256(joined.encode()).hexdigest()
    if not path.is_file():
        return MISSING
    if (digest := known_digest(path)) is None:
        digest = file_sha256(path)
        remember_digest(path, digest)
    return digest


def known_digest(path: Path) -> str | None:
    """Recall the sha256 of a large file that has been read already, and has not changed since."""
    return _KNOWN.get(_identity(path))


def remember_digest(path: Path, digest: str) -> None:
    if path.stat().st_size >= WORTH_KNOWING:
        _KNOWN[_identity(path)] = digest


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
