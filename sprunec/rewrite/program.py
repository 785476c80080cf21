"""A traced method of a block, read: the axes that flow through it, and the sublayers that its residual adds join.

A *sublayer* is the branch of a residual add: attention if it holds an attention core, else feed-forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from sprunec.rewrite.ops.compute_ops import RULES
from sprunec.rewrite.ops.flow import Contraction, Core, Flow, follow
from sprunec.rewrite.ops.groups import Groups

NORMS = ("layer_norm", "rms_norm")
# What gives the stream back, perhaps in another shape or type.
SAME = ("to", "float", "type_as", "contiguous", "view", "reshape", "flatten", "dropout", "identity")


@dataclass(frozen=True)
class Residual:
    """stream + branch: a sublayer. Without it, `add` is `stream`, and `nodes` and `tensors` serve nothing.

    Attributes:
        beside: of a sublayer that is added to another one of the same stream before both are: the add that does it and
            its stream. `stream` is the other sublayer then.
    """

    kind: str
    add: str
    stream: str
    branch: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]
    beside: tuple[str, str] | tuple[()] = ()


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
    stream, found = {start}, list[Residual]()
    for node in graph.nodes:
        inputs = [value for value in node.all_input_nodes if flow.is_tensor(value)]
        if node.op.startswith("call") and flow.op(node) in (*NORMS, *SAME) and inputs and inputs[0] in stream:
            stream.add(node)
        if not _adds(flow, node) or flow.shape(node)[-1:] != flow.shape(start)[-1:]:
            continue
        # Both sides may be of the stream, as in x + norm(x): the trunk is the one not computed from the other.
        for trunk, branch in (inputs, inputs[::-1]):
            if trunk in stream and branch not in needed_by(trunk):
                residual = _residual(flow, graph, node, trunk, branch)
                if residual is not None:
                    stream.add(node)
                    found += _side_by_side(flow, graph, residual, branch) or [residual]
                break
    return tuple(found)


def _adds(flow: Flow, node: fx.Node) -> bool:
    """Tell whether a node adds two tensors of one shape."""
    inputs = [value for value in node.all_input_nodes if flow.is_tensor(value)]
    adds = node.op.startswith("call") and flow.op(node) == "add" and len(inputs) == 2
    return adds and {flow.shape(value) for value in inputs} == {flow.shape(node)}


def _side_by_side(flow: Flow, graph: fx.Graph, whole: Residual, branch: fx.Node) -> list[Residual]:
    """Take a branch apart that is attention + feed-forward, both of the same stream."""
    while flow.op(branch) in SAME and len(branch.users) == 1:
        branch = next(value for value in branch.all_input_nodes if flow.is_tensor(value))
    if not _adds(flow, branch) or len(branch.users) > 1:
        return []
    one, other = (value for value in branch.all_input_nodes if flow.is_tensor(value))
    pairs = ((one, other), (other, one))
    found = [_residual(flow, graph, branch, beside, each) for beside, each in pairs]
    terms = [replace(term, beside=(whole.add, whole.stream)) for term in found if term is not None]
    terms.sort(key=lambda term: term.kind)
    return terms if [term.kind for term in terms] == ["attention", "feed_forward"] else []


def _residual(flow: Flow, graph: fx.Graph, add: fx.Node, stream: fx.Node, branch: fx.Node) -> Residual | None:
    live = needed_by(first_output(graph), {add: stream})
    dead = [node for node in graph.nodes if node not in live and node.op not in ("placeholder", "output")]
    names = frozenset(node.name for node in dead)
    if not any(contraction.node in names for contraction in flow.contractions):
        return None
    kind = "attention" if any(node in names for node, *_ in flow.cores) else "feed_forward"
    return Residual(kind, add.name, stream.name, branch.name, names, tuple(_only_used(graph, live)))


def detours(residuals: Sequence[Residual]) -> dict[str, str]:
    """Tell what each add becomes, by name, without some sublayers; the last one first."""
    together = Counter(residual.beside for residual in residuals if residual.beside)
    ways = [r.beside if r.beside and together[r.beside] > 1 else (r.add, r.stream) for r in reversed(residuals)]
    return dict(ways)


def dead_tensors(program: Program, absent: Sequence[Residual]) -> set[str]:
    """Give the tensors that only sublayers use which are left out."""
    nodes = {node.name: node for node in program.graph.nodes}
    instead = {nodes[add]: nodes[stream] for add, stream in detours(absent).items()}
    return set(_only_used(program.graph, needed_by(first_output(program.graph), instead)))


def _only_used(graph: fx.Graph, live: set[fx.Node]) -> list[str]:
    """List the tensors that nodes outside of `live` read alone."""
    alive = {str(node.target) for node in live if node.op == "get_attr"}
    return [
        name for name in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr") if name not in alive
    ]


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
