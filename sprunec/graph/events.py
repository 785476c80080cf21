"""events.jsonl: one line a training step, by node; what a node wrote before it was cut off is not kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from sprunec.graph.store import strict_json, write_atomically


class Events:
    """The file, open for one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun: set[str] = set()

    def keep(self, nodes: Collection[str]) -> None:
        """Drop the lines of all other nodes, and what an interruption cut off."""
        if self.path.exists():
            self._filter(lambda line: _node_of(line) in nodes)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append; the first event of a node in this run replaces what an earlier run wrote from that step on."""
        node, step = event["node"], event["step"]
        if node not in self._begun and self.path.exists():
            self._filter(lambda line: _node_of(line) != node or json.loads(line)["step"] < step)
        self._begun.add(node)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(json.loads(strict_json(event))) + "\n")

    def _filter(self, keep: Callable[[str], bool]) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if keep(line)]
        if kept != lines:
            write_atomically(self.path, "".join(f"{line}\n" for line in kept))


def _node_of(line: str) -> str | None:
    try:
        name = json.loads(line)["node"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(name)
