"""The execution graph: what will be done, in order, and the digest of everything that could change each result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from sprunec.families.base_config import ModelConfig
from sprunec.file_digests import MISSING
from sprunec.graph.needs import Needs, in_all

SIDES = ("before", "after")
DESCRIBED = ("name", "pass", "step", "inputs", "gives", "digest", "cached", "steps", "parameters", "about")


@dataclass(frozen=True)
class Node:
    """One use of a pass.

    Attributes:
        name: its number and pass, unique in the graph.
        options: the pass's own `Options`.
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
        aside: nothing comes of it but what the report says.
        needs: what it takes of the machine.
        step: the plan's pass that it is for, by JSON pointer; empty where the whole plan asks for it.
    """

    name: str
    pass_: str
    options: Any
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
    aside: bool = False
    needs: Needs = field(default_factory=Needs)
    step: str = ""


@dataclass
class Roles:
    """Which node gives what the report and the emitted model are made of; "" where there is none.

    Attributes:
        source: the plan's input model.
        models: the evaluations of the dense, the masked and the small model.
        tasks: by node that runs tasks, on which of these.
        origin: the last cut.
        final: the small model.
        full: it in the input's shape.
        emitted: the formats.
    """

    source: str = ""
    origin: str = ""
    final: str = ""
    full: str = ""
    emitted: str = ""
    models: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every input comes before its use.

    Attributes:
        parameters, cache_bytes: before and after; at most so many when layers may come out different.
        tokens: training targets in all.
        published: bytes that are written in OUT once all is done; what is in the store gets second names there.
        checkpoint_name: the file in OUT that `full` is written to.
        resolved: the plan with every default filled in; the emitted model carries it.
    """

    plan: str
    nodes: tuple[Node, ...]
    roles: Roles
    device: str
    parameters: tuple[int, int]
    cache_bytes: tuple[int | None, int | None]
    tokens: int
    flops: float
    published: float = 0.0
    checkpoint_name: str | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> dict[str, Any]:
        """Give the plan's section on what trains, and how."""
        return dict(self.resolved.get("engine", {}))

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def needed(self, cached: Mapping[str, bool]) -> Needs:
        """Say what is needed in all for the nodes that are not there yet."""
        return in_all((node.needs for node in self.nodes if not cached.get(node.name)), self.published)

    def document(self, cached: Mapping[str, bool], seconds: Callable[[Needs], float] | None = None) -> dict[str, Any]:
        """Describe the graph as `schemas/graph.schema.json` does.

        Args:
            seconds: what things take; None: nobody knows.
        """

        def told(needs: Needs) -> dict[str, Any]:
            return needs.document(None if seconds is None else seconds(needs))

        known = [vars(n) | {"pass": n.pass_, "cached": cached.get(n.name, False)} for n in self.nodes]
        nodes = [{key: node[key] for key in DESCRIBED} | {"inputs": dict(node["inputs"])} for node in known]
        return {
            "plan": self.plan,
            "passes": [each["name"] for each in self.resolved.get("passes", ())],
            "nodes": [node | {"needs": told(each.needs)} for node, each in zip(nodes, self.nodes, strict=True)],
            "needs": told(self.needed(cached)),
            "parameters": dict(zip(SIDES, self.parameters, strict=True)),
            "cache_bytes_per_token": dict(zip(SIDES, self.cache_bytes, strict=True)),
            "tokens": self.tokens,
            "flops": self.flops,
        }


def digest_of(pass_: str, version: int, options: Mapping[str, Any], inputs: Mapping[str, str | None]) -> str | None:
    """Hash what decides a node's result; None if an option or an input is not known yet."""
    content = {"pass": pass_, "version": version, "options": plain(options), "inputs": dict(inputs)}
    text = json.dumps(content, sort_keys=True)
    unknown = None in inputs.values() or json.dumps(MISSING) in text
    return None if unknown else hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """Turn a value into what JSON has; paths into text."""
    if isinstance(value, ModelConfig):
        value = value.to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
