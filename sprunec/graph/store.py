"""Artifacts under the digest of what made them: written aside, renamed when whole, verified when used."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprunec.graph.graph import Node, file_digest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished output, and the note beside it."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])


class Store:
    """A directory of artifacts; several plans may share one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    def find(self, node: Node) -> Artifact | None:
        """The artifact of a node, if it is here and every file is what its manifest says; else it is set aside."""
        if node.digest is None or not self.has(node):
            return None
        path = self.root / node.digest
        manifest = _read_manifest(path)
        if manifest is not None and (node.digest in self._verified or _is_whole(path, manifest)):
            self._verified.add(node.digest)
            return Artifact(path, manifest)
        os.replace(path, Path(tempfile.mkdtemp(prefix="damaged-", dir=self.root)) / node.digest)
        return None

    def has(self, node: Node) -> bool:
        """Whether a node seems done, without verifying it."""
        return node.digest is not None and (self.root / node.digest / MANIFEST).exists()

    def partial(self, node: Node) -> Path:
        """Where a node that is not done saves what it has."""
        return self.root / f"partial-{node.digest}"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """An empty directory aside, gone again unless `keep` took it."""
        self.root.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="writing-", dir=self.root))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def keep(self, node: Node, directory: Path, note: Mapping[str, Any]) -> Artifact:
        """Write the manifest, with `note` in it, and put a filled directory in its place, in one step."""
        assert node.digest is not None
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        manifest = {
            "kind": node.gives,
            "pass": node.pass_,
            "files": {str(path.relative_to(directory)): file_digest(path) for path in files},
        } | json.loads(strict_json(note))
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*files, directory / MANIFEST):
            _flush(path)
        os.chmod(directory, 0o755)
        try:
            os.replace(directory, self.root / node.digest)
        except OSError:
            if not self.has(node):  # else another plan that shares the store has just made the same
                raise
        self._verified.add(node.digest)
        shutil.rmtree(self.partial(node), ignore_errors=True)
        return Artifact(self.root / node.digest, manifest)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"files", "metrics"} <= manifest.keys() else None


def _is_whole(path: Path, manifest: Mapping[str, Any]) -> bool:
    return all(file_digest(path / name) == digest for name, digest in manifest["files"].items())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def strict_json(document: Any) -> str:
    """JSON as its standard has it: a number that is none becomes null."""
    return json.dumps(_finite(document), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, text: str) -> None:
    """The whole file or the old one, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    _flush(aside)
    os.replace(aside, path)
