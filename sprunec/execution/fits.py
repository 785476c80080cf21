"""Whether a run fits into the machine, looked at before it begins: what is certain not to fit is refused.

What is only likely not to fit a dry run warns of, and says which options would make it fit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from sprunec.errors import Diagnostic, PassError, series
from sprunec.execution.store import Store
from sprunec.graph.alternatives import fitting
from sprunec.graph.graph import Graph, Node
from sprunec.machine import physical_memory


def check_fits(graph: Graph, store: Store, device: str, memory: float, processes: int = 1) -> None:
    """Refuse a run that cannot end well.

    Args:
        device: where passes work, which has so much `memory` for each of so many processes.

    Raises:
        PassError: a pass needs more memory than there is, or the run more of the disk; says how much.
    """
    for found in misfits(graph, store, device, memory, processes):
        raise PassError(f"{found.message}; {found.hint}")


def misfits(graph: Graph, store: Store, device: str, memory: float, processes: int = 1) -> Iterator[Diagnostic]:
    """Find what of a run is certain not to fit, by what its nodes that are not done need; warnings."""
    done = {node.name: store.has(node) for node in graph.nodes}
    for node in (node for node in graph.nodes if not done[node.name]):
        yield from _memory(node, device, memory, processes, offloaded=bool(graph.engine.get("offload")))
    yield from _disk(graph, store, done)


def tight(graph: Graph, store: Store, memory: float, place: str) -> Iterator[Diagnostic]:
    """Find what of a run may not fit, since it has an upper bound above the memory of a place; warnings.

    What `misfits` finds for certain is among it where the bound says so too.
    """
    for node in (node for node in graph.nodes if not store.has(node) and node.needs.peak > memory):
        over = node.needs.peak - memory
        what = f"{node.name} takes up to {node.needs.peak / 1e9:,.1f} GB, and {place} has {memory / 1e9:,.1f} GB"
        left = {words: node.needs.peak - saved for words, saved in node.needs.instead.items()}
        ways = [f"{words} ({left[words] / 1e9:,.1f} GB)" for words in fitting(node.needs.instead, over)]
        other = node.needs.whole.remedy if node.needs.whole is not None else "give fewer batches, or shorter rows"
        hint = f"it fits with {series(ways, 'or')}" if ways else other
        yield Diagnostic("tight-memory", what, hint, severity="warning", pointer=node.step)


def _memory(node: Node, device: str, memory: float, processes: int, *, offloaded: bool) -> Iterator[Diagnostic]:
    """Compare what lies in one piece with the device's memory, and with the machine's."""
    whole, there = node.needs.whole, float(physical_memory())
    if whole is None:
        return
    alone = processes == 1  # else processes may be on several machines, and each may hold a part
    places = [("this machine", whole.host, there)] if alone else []
    if not (offloaded and device != "cpu"):
        places.insert(0, ("this machine" if device == "cpu" else device, whole.device / processes, memory))
    for name, needed, has in places:
        if needed > has:
            what = f"{node.name} needs {whole.what}, {needed / 1e9:,.1f} GB, and {name} has {has / 1e9:,.1f} GB"
            yield Diagnostic("too-little-memory", what, whole.remedy, severity="warning")
            return


def _disk(graph: Graph, store: Store, done: Mapping[str, bool]) -> Iterator[Diagnostic]:
    """Compare what is written for certain with what is free, or will be once earlier runs' remains are gone."""
    place = store.root.absolute()
    while not place.exists():
        place = place.parent
    begun = [store.root / f"partial-{node.digest}" for node in graph.nodes]
    free = shutil.disk_usage(place).free + sum(map(_bytes_in, [*store.root.glob("writing-*"), *begun]))
    if (needed := graph.needed(done).least_disk) > free:
        there = f"the disk of {place} has {free / 1e9:,.1f} GB left"
        message = f"this run writes {needed / 1e9:,.1f} GB at least, and {there}"
        yield Diagnostic("too-little-disk", message, "make room, or give --out on another disk", severity="warning")


def _bytes_in(folder: Path) -> int:
    """Count what a folder's own files take; nothing where there is none."""
    if folder.is_symlink():
        return 0
    files = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    return sum(os.stat(path).st_blocks * 512 for path in files)
