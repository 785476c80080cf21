"""events.jsonl: one line a training step, by node; what a node wrote before it was cut off is not kept.

Every line ends with a check of itself, so that a damaged one is not taken for good; the lines of nodes that are done
come from the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import naming, write_atomically
from sprunec.execution.manifest import hashed, unhashed
from sprunec.execution.store import strict_json

CHECK: dict[str, Any] = {"key": "check", "digits": 12, "indent": None}


class Events:
    """The file, open for one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun: set[str] = set()

    def restore(self, nodes: Mapping[str, str | None]) -> None:
        """Make the file again of the nodes' lines, in their order, and of nothing else.

        Args:
            nodes: what the store has of each; None: what the file has of it, without damaged lines.
        """
        found, old = list[str](), self._lines()
        kept = _by_node(old) if None in nodes.values() else {}
        for name, stored in nodes.items():
            if stored is None:
                found += kept.get(name, [])
            else:  # the same events, under the name that the node has in this plan
                events = filter(None, map(read_line, stored.splitlines()))
                found += [hashed({**event, "node": name}, **CHECK) for event in events]
        self._replace(old, found)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append; the first event of a node in this run replaces what an earlier run wrote from that step on."""
        node, step = event["node"], event["step"]
        if node not in self._begun:
            self._begun.add(node)
            old = self._lines()
            events = ((line, read_line(line) or {"node": None}) for line in old)
            self._replace(old, [line for line, found in events if found["node"] != node or found["step"] < step])
        with naming(self.path), open(self.path, "a", encoding="utf-8", opener=_no_link) as stream:
            stream.write(hashed(json.loads(strict_json(event)), **CHECK) + "\n")

    def by_node(self) -> dict[str, str]:
        """Give the lines of each node that has some."""
        return {node: "".join(f"{line}\n" for line in lines) for node, lines in _by_node(self._lines()).items()}

    def _lines(self) -> list[str]:
        """Read the file, if there is one; a link, to wherever, is not read."""
        if self.path.is_symlink() or not self.path.is_file():
            return []
        with naming(self.path):
            return self.path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")

    def _replace(self, old: list[str], lines: list[str]) -> None:
        if lines != old:
            write_atomically(self.path, "".join(f"{line}\n" for line in lines))


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def read_line(line: str) -> dict[str, Any] | None:
    """Read the event of a line that is what was written; None of any other."""
    event = unhashed(line, **CHECK) or {}
    return event if {"node", "step"} <= event.keys() else None


def _by_node(lines: Iterable[str]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for line in lines:
        if (event := read_line(line)) is not None:
            found.setdefault(event["node"], []).append(line)
    return found
