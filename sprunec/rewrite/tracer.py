"""Tracers: torch.fx down to functions, and one whose proxies know their shapes.

Blocks of any library ask for the shapes of what they compute: they unpack them, branch on them and put them into views.
A *shape proxy* carries its value on the meta device and answers from it, so that all of this is numbers. Which of these
numbers are the batch's and the length's is seen by their size, and the graph reads them off its inputs. Likewise for
the type: a block is traced in one that its code does not name, and what has it follows the inputs. What code casts to
float32, as in norms, softmax and rotary positions, is float64 where the inputs are, so that such a run is exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from sprunec.errors import TraceError
from sprunec.families.block_calls import BlockCall
from sprunec.families.torch_modes import autocast_anywhere
from sprunec.rewrite.program import Call

LARGEST_FACTOR = 2**20
MAKERS = (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.linspace, torch.tensor)


class BlockTracer(fx.Tracer):
    """Traces down to functions; only torch's own modules without tensors (GELU, Dropout, ...) stay modules.

    What enters and leaves every module is noted, for the graph has no modules; of several calls, the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.current = ""
        self.calls: dict[str, Call] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("torch.nn") and not any(True for _ in (*m.parameters(), *m.buffers()))

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.current = self.current, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        given = next(iter((*args, *kwargs.values())), None)
        if isinstance(given, fx.Proxy) and isinstance(result, fx.Proxy):
            self.calls[self.current] = Call(given.node.name, result.node.name)
        self.current = before
        return result


class ShapeProxy(fx.Proxy):
    """A proxy that carries its value on the meta device; what is no tensor of it is answered as it is."""

    value: Any

    def __getattr__(self, k: str) -> Any:
        found = getattr(self.value, k)
        if callable(found):
            return super().__getattr__(k)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return found

    def __len__(self) -> int:
        return len(self.value)

    def __setitem__(self, *_: Any) -> None:
        raise TraceError("`setitem` writes into a tensor that is read afterwards")


class _Made(TorchFunctionMode):
    """Brings tensors that code makes out of numbers into the graph, which would hold them as they are otherwise."""

    def __init__(self, tracer: ShapeTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MAKERS and not self.tracer.computing:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class ShapeTracer(BlockTracer):
    """Traces one way that a block is called."""

    def __init__(self, call: BlockCall) -> None:
        super().__init__()
        self.call, self.computing = call, False
        self._tensors, self._shapes = dict[str, Tensor](), dict[fx.Node, torch.Size]()

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self._tensors = dict(root.named_parameters()) | dict(root.named_buffers()) | tensor_attributes(root)
        with autocast_anywhere(), _Made(self):
            graph = super().trace(root)
        join_filled(graph, self._shapes)
        for node in graph.nodes:
            if node.op.startswith("call") and not node.users and _writes(node):
                raise TraceError(f"`{_op(node)}` writes into a tensor that is read afterwards")
        read_off_inputs(graph, self.call)
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        given = [self.create_proxy("placeholder", name, (), {}) for name in self.call.inputs]
        return self.call.run, [self.root, *given]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ShapeProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **others: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **others)
        self.computing = True
        value = self._value(kind, target, _values(args), _values(kwargs))
        self.computing = False
        if target in MAKERS:
            value = value.to("meta")
        if isinstance(value, Tensor) or (type(value) in (tuple, list) and any(isinstance(v, Tensor) for v in value)):
            vars(proxy)["value"] = value
            self._shapes[proxy.node] = value.shape if isinstance(value, Tensor) else torch.Size()
            return proxy
        # A size, a type, a truth: a number like any other for the code that asked for it.
        self.graph.erase_node(proxy.node)
        return value

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.call.inputs[target]
        with torch.no_grad():
            if kind == "call_function":
                return target(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_module":
                return self.root.get_submodule(target).forward(*args, **kwargs)
        return self._tensors[target]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is each for each in self._tensors.values()):
            raise TraceError("a tensor that is made while the block runs is no part of its graph")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise TraceError(f"a value that `{_op(obj.node)}` gives decides what is computed")

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[place] for place in range(len(obj))])


def tensor_attributes(root: nn.Module) -> dict[str, Tensor]:
    """Name the tensors that modules hold which are neither parameters nor buffers, as some hold their tables."""
    modules = ((f"{path}.".lstrip("."), module) for path, module in root.named_modules())
    return {prefix + k: v for prefix, module in modules for k, v in vars(module).items() if isinstance(v, Tensor)}


def _op(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _values(tree: Any) -> Any:
    return map_aggregate(tree, lambda leaf: leaf.value if isinstance(leaf, ShapeProxy) else leaf)


def _writes(node: fx.Node) -> bool:
    name = _op(node)
    return (name.endswith("_") and not name.endswith("__")) or node.target is operator.setitem


def join_filled(graph: fx.Graph, shapes: Mapping[fx.Node, torch.Size]) -> None:
    """Make a tensor that is made empty, and then filled piece by piece along its last dim, one of these pieces."""
    for node in [node for node in graph.nodes if _op(node) in ("new_empty", "empty", "empty_like")]:
        slices = [user for user in node.users if user.target is operator.getitem]
        copies = [next(iter(each.users)) for each in slices if [_op(user) for user in each.users] == ["copy_"]]
        parts = [index[-1] for index in (each.args[1] for each in slices) if isinstance(index, tuple)]
        ends = [(part.start or 0, part.stop or shapes[node][-1]) for part in parts if isinstance(part, slice)]
        chained = [0, *(end for _, end in ends)] == [*(start for start, _ in ends), shapes[node][-1]]
        same = all(shapes[into] == shapes[value] for into, value in (copy.args for copy in copies))
        if len(ends) == len(copies) == len(slices) and slices and chained and same:
            with graph.inserting_after(copies[-1]):
                result = graph.call_function(torch.cat, ([copy.args[1] for copy in copies], -1))
            node.replace_all_uses_with(result, delete_user_cb=lambda user, slices=slices: user not in slices)
            for each in (*copies, *slices, node):
                graph.erase_node(each)


def read_off_inputs(graph: fx.Graph, call: BlockCall) -> None:
    """Put sizes, type and device of the inputs where a graph has those of the examples that it was traced with."""
    reader = _Reader(graph, call)
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "float":
            node.target, node.args = "to", (*node.args, torch.float32)
        if node.op not in ("placeholder", "output") and node not in reader.made:
            node.args = map_aggregate(node.args, reader.read)
            node.kwargs = map_aggregate(node.kwargs, reader.read)


class _Reader:
    """Makes the nodes that read something off the inputs, each once, behind the last of them."""

    def __init__(self, graph: fx.Graph, call: BlockCall) -> None:
        self._graph, self._sizes = graph, call.sizes
        self._inputs = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
        self._first = next(iter(self._inputs.values()))
        self._dtype = next(iter(call.inputs.values())).dtype
        self._known: dict[Any, fx.Node] = {}
        self._last = list(self._inputs.values())[-1]
        self.made: set[fx.Node] = set()

    def read(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == "meta":
            return self._node("device", getattr, self._first, "device")
        if leaf is self._dtype:
            return self._node("dtype", getattr, self._first, "dtype")
        if leaf is torch.float32:  # what a norm or a softmax casts to is no less than that, and float64 in such a run
            return self._node("wide", torch.promote_types, self.read(self._dtype), torch.float32)
        return leaf if isinstance(leaf, bool) or not isinstance(leaf, int) else self._number(leaf)

    def _number(self, number: int) -> Any:
        """Find a number as a product of sizes and of something small; others stay as they are."""
        sizes = sorted(self._sizes, reverse=True)
        for product in (*combinations_with_replacement(sizes, 2), *((size,) for size in sizes)):
            factor, rest = divmod(abs(number), torch.Size(product).numel())
            if rest == 0 and 0 < factor < LARGEST_FACTOR:
                first, *others = (self._size(size) for size in product)
                for other in (*others, *([factor] if factor > 1 else [])):
                    first = self._node((first, other), operator.mul, first, other)
                return first if number > 0 else self._node((first, -1), operator.neg, first)
        return number

    def _size(self, size: int) -> fx.Node:
        found = None
        for name, dim in self._sizes[size]:
            read = self._node((name, dim), "size", self._inputs[name], dim)
            found = read if found is None else self._node((found, read), operator.add, found, read)
        assert found is not None
        return found

    def _node(self, key: Any, target: str | Callable[..., Any], *args: Any) -> fx.Node:
        if key not in self._known:
            with self._graph.inserting_after(self._last):
                kind = "call_method" if isinstance(target, str) else "call_function"
                self._last = self._known[key] = self._graph.create_node(kind, target, args)
            self.made.add(self._last)
        return self._known[key]
