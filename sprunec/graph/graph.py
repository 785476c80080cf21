"""The execution graph: what will be done, in order, and the digest of everything that could change each result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sprunec.durable import file_sha256


@dataclass(frozen=True)
class Node:
    """One use of a pass.

    Attributes:
        name: its number and pass, unique in the graph.
        inputs: by the pass's own words for them, the names of the nodes that give them.
        files: the user's files, which `options` name by content.
        stamps: when each of them was last changed, and its size.
        digest: over pass, version, options and the inputs' digests; None when a file it depends on is missing.
        about: what it does, in a few words.
        steps: training steps.
        checkpoint_every: steps from one save to the next, or a time such as "10m".
        parameters: of the model it gives; at most so many when layers may come out different.
        writes: the files that the user asked for besides OUT, by the pass's own words for what goes into them.
        provenance: what is noted beside these files.
        notes: what the user should know about it, whatever comes out.
    """

    name: str
    pass_: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    digest: str | None
    gives: str
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    about: str = ""
    steps: int | None = None
    checkpoint_every: int | str | None = None
    parameters: int | None = None
    writes: Mapping[str, Path] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every input comes before its use.

    Attributes:
        roles: which node gives what the report and the emitted model are made of: dense, masked, small (evaluations),
            masks, final (the small model), full (it in the input's shape), emitted, source (the plan's input model).
        tokens: training targets in all.
        checkpoint_name: the file in OUT that `full` is written to.
        resolved: the plan with every default filled in; the emitted model carries it.
    """

    plan: str
    nodes: tuple[Node, ...]
    roles: Mapping[str, str]
    device: str
    parameters: tuple[int, int]
    tokens: int
    flops: float
    checkpoint_name: str | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> Mapping[str, Any]:
        """What trains, and how: the plan's section."""
        found: Mapping[str, Any] = self.resolved.get("engine", {})
        return found

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def document(self, cached: Mapping[str, bool]) -> dict[str, Any]:
        """The graph as `schemas/graph.schema.json` describes it."""
        return {
            "plan": self.plan,
            "nodes": [
                {
                    "name": node.name,
                    "pass": node.pass_,
                    "inputs": dict(node.inputs),
                    "gives": node.gives,
                    "digest": node.digest,
                    "cached": cached.get(node.name, False),
                    "steps": node.steps,
                    "parameters": node.parameters,
                    "about": node.about,
                }
                for node in self.nodes
            ],
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "tokens": self.tokens,
            "flops": self.flops,
        }


def digest_of(pass_: str, version: int, options: Mapping[str, Any], inputs: Mapping[str, str | None]) -> str | None:
    """sha256, or None if an option or an input is not known yet."""
    if any(value is None for value in inputs.values()) or MISSING in options.values():
        return None
    content = {"pass": pass_, "version": version, "options": plain(options), "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


MISSING = "missing file"


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written to; zeros if there is none."""
    if not path.exists():
        return 0, 0
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def file_digest(path: Path) -> str:
    """sha256 of a file's content, of every file in a directory; `MISSING` if there is none."""
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
        joined = "\n".join(f"{p.relative_to(path)} {file_digest(p)}" for p in parts)
        return hashlib.sha256(joined.encode()).hexdigest()
    if not path.is_file():
        return MISSING
    known = known_digest(path)
    if known is not None:
        return known
    digest = file_sha256(path)
    remember_digest(path, digest)
    return digest


# A checkpoint is named by the plan, linked by artifacts and verified in the store: it is read once in a process.
WORTH_KNOWING = 64 * 2**20
_KNOWN: dict[tuple[int, ...], str] = {}


def known_digest(path: Path) -> str | None:
    """The sha256 of a large file that has been read already, and has not changed since."""
    return _KNOWN.get(_identity(path))


def remember_digest(path: Path, digest: str) -> None:
    if path.stat().st_size >= WORTH_KNOWING:
        _KNOWN[_identity(path)] = digest


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
