"""What `run --dry-run` shows: the plan's passes as a tree of nodes, what each takes; or the graph for other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType

from sprunec.show.console import duration
from sprunec.show.fitted import Column, FittedTable, Line, numeric
from sprunec.show.needed import PARTS, needs_lines
from sprunec.show.numbers import (
    NOTHING,
    UNKNOWN,
    byte_words,
    is_finite,
    number,
    percent,
    plural,
    powered,
    printable,
    rounded,
)

WHOLE = "in all"
FIRST, BETWEEN, LAST = "model and data", "in between", "what comes of it"
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Branch:
    """Nodes that stand behind each other for one pass of the plan, or for the plan as a whole."""

    title: str
    nodes: Sequence[Document]

    def rows(self) -> Iterator[tuple[str, Document]]:
        """Give each node with its name as a leaf of the tree."""
        for node in self.nodes:
            yield f"{'└' if node is self.nodes[-1] else '├'} {node['name']}", node

    def summed(self) -> dict[str, Any]:
        """Add up what its nodes need; of memory it is the most that one takes."""
        each = [node["needs"] for node in self.nodes]
        worst = max(each, key=lambda needs: needs["memory"] if is_finite(needs.get("memory")) else 0.0)
        keys = ("tokens", "operations", "disk", "read", "seconds")
        return {**worst, **{key: _sum(needs.get(key) for needs in each) for key in keys}}


def branches(document: Document) -> list[Branch]:
    """Put nodes together that the plan asks for in one place."""
    found = [(step, list(nodes)) for step, nodes in groupby(document["nodes"], lambda node: str(node.get("step", "")))]
    titles = [FIRST, *[BETWEEN] * (len(found) - 2), LAST][: len(found)]
    for place, index in enumerate(step.rpartition("/")[2] for step, _ in found):
        if index.isdecimal():
            titles[place] = f"{int(index) + 1}. {document['passes'][int(index)]}"
    return [Branch(title, nodes) for title, (_, nodes) in zip(titles, found, strict=True)]


def _sum(amounts: Iterable[Any]) -> float | None:
    each = list(amounts)
    return sum(each) if all(map(is_finite, each)) else None


def graph_table(document: Document) -> RenderableType:
    """List the nodes that `run` would go through, what each gives, and what all of it costs."""
    what, source = Column("what", wraps=True, readable=24), Column("from", wraps=True, readable=9, rank=3)
    amounts = numeric("steps", rank=2), numeric("size", rank=1), Column("digest", rank=4)
    table = FittedTable(Column("node"), what, source, *amounts)
    for branch in branches(document):
        table.add(branch.title, *[""] * 5, style="bold")
        for name, node in branch.rows():
            # The nodes that this one reads, each once, by number where they have one.
            sources = ", ".join(re.sub(r"^(\d+)-.*", r"\1", name) for name in dict.fromkeys(node["inputs"].values()))
            stored = " stored" if node["cached"] else ""
            short = "lacks input" if node["digest"] is None else f"{node['digest'][:6]}{stored}"
            sizes = number(node.get("steps")), rounded(node.get("parameters"))
            table.add(name, node["about"], sources, *sizes, short, style="dim" if stored else "")
    lines = Line(graph_caption(document), "dim"), *(Line(text, "dim") for text in needs_lines(document))
    return Group(Line(f"plan {document['plan']}", "bold"), table, needs_table(document), *lines)


def needs_table(document: Document) -> FittedTable:
    """List what each pass of the plan takes, what its nodes do of that, and all that are not done together."""
    shown = numeric("tokens", rank=3), numeric("operations", rank=2), numeric("memory"), Column("most of it", rank=6)
    timed = [numeric("time")] if document.get("measured") else []
    table = FittedTable(Column("needs"), *shown, numeric("disk", rank=4), numeric("reads", rank=5), *timed)
    for branch in branches(document):
        table.add(branch.title, *_cells(branch.summed(), bool(timed)), style="bold")
        for name, node in branch.rows() if len(branch.nodes) > 1 else ():
            table.add(name, *_cells(node["needs"], bool(timed)), style="dim" if node["cached"] else "")
    table.add(WHOLE, *_cells(document["needs"], bool(timed)), style="bold")
    return table


def _cells(needs: Document, timed: bool) -> list[str]:
    parts = {part: size for part, size in needs["memory_of"].items() if part != "libraries" and is_finite(size)}
    most = max(parts, key=lambda part: parts[part], default="")
    part = f"{PARTS.get(most, most)} {byte_words(parts[most])}" if most else NOTHING
    operations = needs.get("operations", 0)
    done = (powered(operations) if operations else NOTHING) if is_finite(operations) else UNKNOWN
    cells = [_counted(needs.get("tokens"), rounded), done, byte_words(needs.get("memory")), part]
    cells += [_counted(needs.get(key), byte_words) for key in ("disk", "read")]
    seconds = needs.get("seconds")
    return [*cells, duration(seconds) if seconds != 0 else NOTHING] if timed else cells


def _counted(size: Any, written: Any) -> str:
    return str(written(round(size))) if is_finite(size) and size else NOTHING


def graph_caption(document: Document) -> str:
    before, after = (document["parameters"].get(side) for side in ("before", "after"))
    caches = [(document.get("cache_bytes_per_token") or {}).get(side) for side in ("before", "after")]
    nodes = document["nodes"]
    unready = sum(node["digest"] is None for node in nodes)
    lacking = f", {unready} lacking input" if unready else ""
    lines = [
        f"{plural(len(nodes), 'node')}, {sum(node['cached'] for node in nodes)} already in the store{lacking}",
        f"parameters {number(before)} -> {number(after)} ({percent(after, before)})",
        f"key-value cache {' -> '.join(number(each, nothing=UNKNOWN) for each in caches)} bytes a token",
        f"{plural(document.get('tokens'), 'training token')}, "
        f"about {powered(document.get('flops'))} floating-point operations",
    ]
    return "\n".join([*lines, *map(cost_words, document.get("training", ()))])


def cost_words(row: Document) -> str:
    """Say what a training step takes of each device."""
    memory, traffic = (row[key] / 1e9 if is_finite(row.get(key)) else row.get(key) for key in ("memory", "traffic"))
    words = f"about {number(memory, ',.1f', UNKNOWN)} GB"
    if row.get("devices") == 1:
        return f"training takes {words} of a device's memory"
    held = "all of the model (DDP)" if row["sharding"] == "none" else "a part of the model (FSDP2)"
    sent = number(traffic, ",.2f", UNKNOWN)
    return f"each of {number(row.get('devices'))} devices with {held}: {words}, sends {sent} GB a step"


# ---- for other tools


def mermaid(document: Document) -> str:
    """Write the graph as a flowchart of Mermaid, a box a node, those of one pass of the plan together."""
    lines = ["flowchart TD"]
    for number_, branch in enumerate(branches(document)):
        lines += [f'  subgraph s{number_}["{_quoted(branch.title)}"]']
        lines += [f'    {_key(node["name"])}["{_quoted("<br/>".join(_label(node)))}"]' for node in branch.nodes]
        lines += ["  end"]
    return "\n".join([*lines, *(f"  {_key(giver)} --> {_key(taker)}" for giver, taker in _edges(document))])


def dot(document: Document) -> str:
    """Write the graph in Graphviz's language, as `mermaid` does."""
    lines = [f"digraph {json.dumps(printable(document['plan']))} {{", "  node [shape=box];"]
    for number_, branch in enumerate(branches(document)):
        lines += [f"  subgraph cluster_{number_} {{", f"    label={json.dumps(branch.title)};"]
        labels = (json.dumps(printable("\n".join(_label(node))), ensure_ascii=False) for node in branch.nodes)
        named = zip(branch.nodes, labels, strict=True)
        lines += [f"    {_key(node['name'])} [label={label}];" for node, label in named]
        lines += ["  }"]
    return "\n".join([*lines, *(f"  {_key(giver)} -> {_key(taker)};" for giver, taker in _edges(document)), "}"])


def _label(node: Document) -> list[str]:
    size = [f"{rounded(node['parameters'])} parameters"] if node.get("parameters") else []
    return [node["name"], *filter(None, [node["about"]]), *size]


def _key(name: str) -> str:
    return "n" + re.sub(r"\W", "_", name)


def _quoted(text: str) -> str:
    return printable(text).replace('"', "#quot;").replace("\n", " ")


def _edges(document: Document) -> Iterator[tuple[str, str]]:
    for node in document["nodes"]:
        yield from ((giver, node["name"]) for giver in dict.fromkeys(node["inputs"].values()))


FORMS = {"mermaid": mermaid, "dot": dot}
