"""events.jsonl: one line a training step, by node; what a node wrote before it was cut off is not kept.

Every line ends with a check of itself, so that a damaged one is not taken for good; the lines of nodes that are done
come from the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import naming, write_atomically
from sprunec.execution.store import strict_json

CHECK, DIGITS = "check", 12


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
        old = self._lines()
        if old is None and not any(nodes.values()):
            return
        found = list[str]()
        for name, stored in nodes.items():
            if stored is None:
                found += _of(old or [], name)
            else:  # the same events, under the name that the node has in this plan
                found += [_line({**event, "node": name}) for event in map(read_line, stored.splitlines()) if event]
        if found != old:
            write_atomically(self.path, "".join(f"{line}\n" for line in found))

    def write(self, event: Mapping[str, Any]) -> None:
        """Append; the first event of a node in this run replaces what an earlier run wrote from that step on."""
        node, step = event["node"], event["step"]
        if node not in self._begun:
            self._begun.add(node)
            lines, damaged = self._lines() or [], {"node": None}
            kept = [line for line in lines if (old := read_line(line) or damaged)["node"] != node or old["step"] < step]
            if kept != lines:
                write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        with naming(self.path), open(self.path, "a", encoding="utf-8", opener=_no_link) as stream:
            stream.write(_line(json.loads(strict_json(event))) + "\n")

    def of(self, node: str) -> str:
        """Give a node's lines."""
        return "".join(f"{line}\n" for line in _of(self._lines() or [], node))

    def _lines(self) -> list[str] | None:
        """Read the file; None if there is none. One that is a link, to wherever, is not read."""
        if self.path.is_symlink() or not self.path.is_file():
            return None
        with naming(self.path):
            return self.path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _line(event: Mapping[str, Any]) -> str:
    plain = json.dumps(event)
    return json.dumps({**event, CHECK: hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]})


def read_line(line: str) -> dict[str, Any] | None:
    """Read the event of a line that is what was written; None of any other."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or CHECK not in event:
        return None
    event.pop(CHECK)
    return event if {"node", "step"} <= event.keys() and _line(event) == line else None


def _of(lines: list[str], node: str) -> list[str]:
    return [line for line in lines if (read_line(line) or {}).get("node") == node]
