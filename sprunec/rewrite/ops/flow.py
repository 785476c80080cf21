"""A walk along a graph that keeps, for every value, which axes its dims are made of.

An op without a rule is no error: the axes that go in and come out are pinned, with the op's name as the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sprunec.rewrite.ops.axes import Dim, Layout, fresh, pin, size
from sprunec.rewrite.ops.groups import Groups, Numbering

Rule = Callable[["Flow", fx.Node], Layout]
INPLACE = ("iadd", "isub", "imul", "itruediv")


@dataclass(frozen=True)
class Contraction:
    """A sum over a dim of `operand`, taken by `node`: the only way out for the axes of that dim."""

    node: str
    operand: str
    dim: int


@dataclass(frozen=True)
class Core:
    """One attention: the groups of the dims that it runs side by side (heads), scores by, and mixes."""

    node: str
    heads: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    mixed: tuple[int, ...]


@dataclass
class Flow:
    """A walk over one graph whose nodes know the values that they have on the meta device.

    Attributes:
        cores: what `Core` has, of axes that may still be split and united.
    """

    root: torch.nn.Module
    shapes: dict[str, Any]
    rules: Mapping[str, Rule]
    values: dict[str, Layout] = field(default_factory=dict)
    tensors: dict[str, Layout] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    cores: list[tuple[str, Layout, Dim, Dim]] = field(default_factory=list)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.shapes[node.name].shape)

    def layout(self, value: Any) -> Layout:
        return self.values[value.name] if self.is_tensor(value) else []

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and isinstance(self.shapes[value.name], Tensor)

    def apply(self, node: fx.Node) -> Layout:
        if node.op == "get_attr":
            return self.tensors.setdefault(str(node.target), fresh(self.shape(node)))
        if node.op == "placeholder":
            return fresh(self.shape(node))
        rule = self.rules.get(self.op(node))
        if rule is not None:
            layout = rule(self, node)
            if tuple(size(dim) for dim in layout) == self.shape(node):
                return layout
            # A way to call it that the rule does not know: what it says of the axes cannot be right.
            pin_all(layout, f"it comes out of {self.op(node)}")
        return self.lost(node, node)

    def pinned(self, node: fx.Node, dims: Iterable[Dim], reason: str) -> Layout:
        """Pin what goes in, and lay `node` out anew, pinned too."""
        pin_all(dims, reason)
        return fresh(self.shape(node), reason)

    def lost(self, node: fx.Node, through: fx.Node) -> Layout:
        """Lay `node` out where nobody knows what `through` does: all axes that go in and come out are pinned."""
        for value in tensor_inputs(self, through):
            pin_all(self.layout(value), f"it goes through {self.op(through)}")
        return fresh(self.shape(node), f"it comes out of {self.op(through)}")

    def sums_over(self, node: fx.Node, operand: Any, dim: int) -> None:
        self.contractions.append(Contraction(node.name, operand.name, dim))

    def op(self, node: fx.Node) -> str:
        """Name `add` for torch.add, operator.iadd and Tensor.add_ alike; a leaf module goes by its class."""
        if node.op == "call_module":
            return type(self.root.get_submodule(str(node.target))).__name__.lower()
        if node.target is getattr:
            return str(node.args[1])
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        name = name.rstrip("_")
        return name[1:] if name in INPLACE else name

    def finish(self) -> tuple[Groups, tuple[Core, ...]]:
        numbers = Numbering()
        groups = numbers.groups(self.values, self.tensors)
        layout, dim = numbers.layout, numbers.dim
        return groups, tuple(Core(node, layout(heads), dim(by), dim(mixed)) for node, heads, by, mixed in self.cores)


def follow(graph: fx.Graph, root: torch.nn.Module, inputs: tuple[Any, ...], rules: Mapping[str, Rule]) -> Flow:
    """Follow the axes of every value of `graph` over `root`, called with `inputs` on the meta device."""
    recorder = _Recorder(root, graph)
    with torch.no_grad():
        recorder.run(*inputs)
    flow = Flow(root, recorder.seen, rules)
    for node in graph.nodes:
        if node.op == "output":
            for value in tensor_inputs(flow, node):
                pin_all(flow.layout(value), "it leaves the block")
        elif flow.is_tensor(node):
            flow.values[node.name] = flow.apply(node)
    return flow


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """Take an argument of a call, given by its place or by its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def tensor_inputs(flow: Flow, node: fx.Node) -> Iterator[fx.Node]:
    return (value for value in node.all_input_nodes if flow.is_tensor(value))


def pin_all(layout: Iterable[Dim], reason: str) -> None:
    for dim in layout:
        pin(dim, reason)


class _Recorder(fx.Interpreter):
    """Runs a graph on the meta device, so that no weight is read, and keeps each node's value by name."""

    def __init__(self, root: torch.nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
