"""A traced method of a block, read: the axes that flow through it, and the sublayers that its residual adds join.

A *sublayer* is the branch of a residual add: attention if it holds an attention core, else feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from sprunec.rewrite.ops.axes import Groups
from sprunec.rewrite.ops.compute_ops import RULES
from sprunec.rewrite.ops.flow import Contraction, Core, Flow, follow


@dataclass(frozen=True)
class Residual:
    """stream + branch: a sublayer. Without it, `add` is `stream`, and `nodes` and `tensors` serve nothing."""

    kind: str
    add: str
    stream: str
    branch: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A module that was called while a block was traced: the nodes of its first input and of its output."""

    given: str
    result: str


@dataclass(frozen=True)
class Program:
    """One traced method of a block and what flows through it; `calls` by the modules' names in the block."""

    graph: fx.Graph
    ops: Mapping[str, str]
    groups: Groups
    contractions: tuple[Contraction, ...]
    cores: tuple[Core, ...]
    residuals: tuple[Residual, ...]
    calls: Mapping[str, Call] = field(default_factory=dict)


def read_program(graph: fx.Graph, root: nn.Module, inputs: tuple[Any, ...], calls: Mapping[str, Call]) -> Program:
    """Follow a graph's axes on the meta device, and find its sublayers."""
    flow = follow(graph, root, inputs, RULES)
    ops = {node.name: flow.op(node) for node in graph.nodes if node.op.startswith("call")}
    groups, cores = flow.finish()
    return Program(graph, ops, groups, tuple(flow.contractions), cores, find_residuals(flow, graph), calls)


def find_residuals(flow: Flow, graph: fx.Graph) -> tuple[Residual, ...]:
    """Find the residual adds on the way from the first placeholder to the first output, in order."""
    start = next(node for node in graph.nodes if node.op == "placeholder")
    stream, found = {start}, []
    for node in graph.nodes:
        inputs = [value for value in node.all_input_nodes if flow.is_tensor(value)]
        if node.op.startswith("call") and flow.op(node) in ("layer_norm", "rms_norm") and inputs[0] in stream:
            stream.add(node)
        joins = node.op.startswith("call") and flow.op(node) == "add" and len(inputs) == 2
        if not joins or any(flow.shape(value) != flow.shape(start) for value in (node, *inputs)):
            continue
        # Both sides may be of the stream, as in x + norm(x): the trunk is the one not computed from the other.
        for trunk, branch in (inputs, inputs[::-1]):
            if trunk in stream and branch not in needed_by(trunk):
                residual = _residual(flow, graph, node, trunk, branch)
                if residual is not None:
                    stream.add(node)
                    found.append(residual)
                break
    return tuple(found)


def _residual(flow: Flow, graph: fx.Graph, add: fx.Node, stream: fx.Node, branch: fx.Node) -> Residual | None:
    live = needed_by(first_output(graph), {add: stream})
    dead = [node for node in graph.nodes if node not in live and node.op not in ("placeholder", "output")]
    names = frozenset(node.name for node in dead)
    if not any(contraction.node in names for contraction in flow.contractions):
        return None
    kind = "attention" if any(node in names for node, *_ in flow.cores) else "feed_forward"
    alive = {str(node.target) for node in live if node.op == "get_attr"}
    tensors = dict.fromkeys(str(node.target) for node in dead if node.op == "get_attr")
    return Residual(kind, add.name, stream.name, branch.name, names, tuple(t for t in tensors if t not in alive))


def first_output(graph: fx.Graph) -> fx.Node:
    """Find the hidden states among what the graph returns."""
    result = graph.output_node().args[0]
    first = result[0] if isinstance(result, tuple | list) else result
    assert isinstance(first, fx.Node)
    return first


def needed_by(node: fx.Node, instead: Mapping[fx.Node, fx.Node] = MappingProxyType({})) -> set[fx.Node]:
    """Collect a node and all it is computed from; a node that `instead` has another for needs that one alone."""
    pending, found = [node], set()
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending.extend([instead[each]] if each in instead else each.all_input_nodes)
    return found
