"""Artifacts under the digest of what made them: written aside, renamed when whole, verified when used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprunec.durable import flush, read_file, write_atomically, write_new
from sprunec.execution.manifest import MANIFEST, hashed, read_manifest, unexpected_files
from sprunec.file_digests import file_digest
from sprunec.graph.graph import Node

EVENTS = "events-{digest}.jsonl"
PLAN = "plan-{}.json"


@dataclass(frozen=True)
class Artifact:
    """A finished output, and the note beside it."""

    path: Path
    manifest: Mapping[str, Any]


class Store:
    """A directory of artifacts; several plans may share one.

    Args:
        tell: takes a line about what was found damaged.
    """

    def __init__(self, root: Path, tell: Callable[[str], None] = lambda text: None) -> None:
        self.root, self.tell = root, tell
        self._verified: set[str] = set()

    def find(self, node: Node) -> Artifact | None:
        """Find a node's artifact, if it is here and every file is what its manifest says; else set it aside.

        A manifest must be what was written, to the byte. What stands beside the files it names is set aside alone.
        """
        if node.digest is None or not os.path.lexists(path := self.root / node.digest):
            return None
        manifest = None if path.is_symlink() else read_manifest(path, node.digest)
        files = {} if manifest is None or node.digest in self._verified else manifest["files"]
        if manifest is None or any(file_digest(path / name) != digest for name, digest in files.items()):
            self._set_aside(path, f"{node.name}: its artifact is damaged, and is made again")
            return None
        for file in unexpected_files(path, manifest):
            self._set_aside(file, f"{node.name}: {file.name} is no part of its artifact")
        self._verified.add(node.digest)
        return Artifact(path, manifest)

    def _set_aside(self, path: Path, why: str) -> None:
        place = Path(tempfile.mkdtemp(prefix="damaged-", dir=self.root))
        os.replace(path, place / path.name)
        self.tell(f"{why}; what was there is now in {place}")

    def refer(self, plan: str, nodes: Iterable[Node]) -> None:
        """Note which artifacts a plan refers to, instead of what the plan of this name referred to before."""
        digests = [node.digest for node in nodes if node.digest is not None]
        name = hashlib.sha256(plan.encode()).hexdigest()[:16]
        write_atomically(self.root / PLAN.format(name), hashed({"plan": plan, "digests": digests}))

    def has(self, node: Node) -> bool:
        """Tell whether a node seems done, without verifying it."""
        return node.digest is not None and (self.root / node.digest / MANIFEST).is_file()

    def events(self, node: Node) -> str | None:
        """Read the lines that a node that is done wrote; None if they are not here as they were written."""
        path, wanted = self.root / EVENTS.format(digest=node.digest), self._events_hash(node)
        if wanted is None or path.is_symlink() or file_digest(path) != wanted:
            return None
        return read_file(path)

    def mend_events(self, node: Node, lines: str) -> None:
        """Put a node's lines back where they are missing or damaged, if these are the ones."""
        if self._events_hash(node) == hashlib.sha256(lines.encode()).hexdigest():
            self.tell(f"{node.name}: the store's copy of its events was damaged, and is written again")
            self._keep_events(str(node.digest), lines)

    def _events_hash(self, node: Node) -> str | None:
        """Read the hash in the manifest; None where a node wrote no lines, or is not done."""
        return (read_manifest(self.root / node.digest, node.digest) or {}).get("events") if node.digest else None

    def partial(self, node: Node) -> Path:
        """Say where a node that is not done saves what it has: in a folder of the store's own, never a link."""
        path = self.root / f"partial-{node.digest}"
        if path.is_symlink():
            self._set_aside(path, f"{node.name}: its saves are a link to somewhere else")
        return path

    def sweep(self) -> None:
        """Take away what runs that were killed left half written; only while no other works in this store."""
        for directory in self.root.glob("writing-*"):
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Make an empty directory aside, gone again unless `keep` took it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="writing-", dir=self.root, ignore_cleanup_errors=True) as directory:
            yield Path(directory)

    def keep(self, node: Node, directory: Path, note: Mapping[str, Any], events: str = "") -> Artifact:
        """Write the manifest, with `note` in it, and put a filled directory in its place, in one step.

        Args:
            events: the lines that the node wrote while it ran; they are kept beside the artifact.
        """
        assert node.digest is not None
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        manifest = {
            "kind": node.gives,
            "pass": node.pass_,
            "digest": node.digest,
            "files": {path.relative_to(directory).as_posix(): file_digest(path) for path in files},
            "events": self._keep_events(node.digest, events) if events else None,
        } | json.loads(strict_json(note))
        write_new(directory / MANIFEST, hashed(manifest))
        for path in (*directory.rglob("*"), directory):
            flush(path)
        os.chmod(directory, 0o755)
        try:
            os.replace(directory, self.root / node.digest)
        except OSError:
            if not self.has(node):  # else another plan that shares the store has just made the same
                raise
        flush(self.root)
        self._verified.add(node.digest)
        shutil.rmtree(self.partial(node), ignore_errors=True)
        return Artifact(self.root / node.digest, manifest)

    def _keep_events(self, digest: str, lines: str) -> str:
        """Write them; return their sha256."""
        path = self.root / EVENTS.format(digest=digest)
        write_atomically(path, lines)
        return file_digest(path)


def strict_json(document: Any) -> str:
    """Write JSON as its standard has it: a number that is none becomes null."""
    return json.dumps(_finite(document), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
