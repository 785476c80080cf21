"""events.jsonl: one line a training step, by node; what a node wrote before it was cut off is not kept."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sprunec.graph.store import strict_json, write_atomically


class Events:
    """The file, open for one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, nodes: Collection[str]) -> None:
        """Drop the lines of all other nodes, and what an interruption cut off."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _node_of(line) in nodes]
            if kept != lines:
                write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def cut_back(self, node: str, step: int) -> None:
        """Drop a node's lines from `step` on: it goes on from a save before it."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _node_of(line) != node or json.loads(line)["step"] < step]
            if kept != lines:
                write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, event: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(json.loads(strict_json(event))) + "\n")


def _node_of(line: str) -> str | None:
    try:
        name = json.loads(line)["node"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(name)
