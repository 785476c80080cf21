"""Traced graphs held against the modules that they were traced from, on the same inputs."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from sprunec.errors import TraceError
from sprunec.families.block_calls import BlockCall
from sprunec.models.streamed import Streamed, StreamedWeight, largest, with_parameters
from sprunec.rewrite.surgery import build
from sprunec.rewrite.trace import TracedBlock, source_line

NOISE = 64  # times the arithmetic's step at the largest number that comes out
TABLE = 2**21  # numbers drawn at random
STEP, APART = 7919, 1009  # from one place in it to the next; primes, so that no rows are alike


def first_of_kinds(blocks: Sequence[TracedBlock]) -> list[TracedBlock]:
    """List one block, the first, of each of those that were traced together."""
    return sorted({id(block.forward): block for block in reversed(blocks)}.values(), key=lambda block: block.index)


@torch.no_grad()
def verify(block: TracedBlock, method: str, inputs: Sequence[Tensor], graph: Any = None) -> float:
    """Compute a block by its module and by its graph, on inputs as given and on random hidden states as large.

    Args:
        graph: a module that has the block's graphs; None: one is made over the block's own tensors.

    Returns:
        The largest difference of all, as a part of the largest number that comes out of the block.

    Raises:
        TraceError: they are further apart than rounding explains; names the module and the line where they part.
    """
    worst, graph = 0.0, graph_module(block) if graph is None else graph
    hidden, *others = inputs
    random = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden) * hidden.std()
    for states in (hidden, random):
        wanted = _tensors(block.calls[method].run(block.module, states, *others))
        found = _tensors(getattr(graph, method)(states, *others))
        part = max(_part(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
        if part > (rounding := NOISE * torch.finfo(hidden.dtype).eps):
            where = _parting(block, method, graph, (states, *others))
            raise TraceError(
                f"{where}: its traced graph computes something else than its module: "
                f"{part:.1e} of the largest number apart, where {rounding:.0e} may be rounding"
            )
        worst = max(worst, part)
    return worst


def verify_kinds(blocks: Sequence[TracedBlock]) -> None:
    """Hold one block of each kind against its graphs, on weights and inputs drawn at random, with and without a past.

    What a graph computes does not depend on the weights' values, so that those of the model need not be read for it.

    Raises:
        TraceError: see `verify`.
    """
    for block in first_of_kinds(blocks):
        graph, drawn = graph_module(block), RandomWeights(block.module)
        with with_parameters(block.module, [""], drawn.read), with_parameters(graph, [""], drawn.read):
            for method, call in block.calls.items():
                verify(block, method, _random_inputs(call), graph)


@torch.no_grad()
def verify_weights(blocks: Sequence[TracedBlock], own: Streamed, graphs: Streamed) -> dict[int, float]:
    """Hold one block of each kind against its graph on a model's own weights, and on what its text comes to there.

    Args:
        own, graphs: the model with its library's modules, and with their graphs in the places of these.

    Returns:
        By block, the largest difference, as a part of the largest number that comes out of it.

    Raises:
        TraceError: see `verify`.
    """
    kinds, found = {block.path: block for block in first_of_kinds(blocks)}, dict[int, float]()
    graphs.enter()
    for path in graphs.paths[: 1 + max(block.index for block in kinds.values())]:
        with graphs.holding(path):
            if path in kinds:
                graph, inputs = graphs.model.get_submodule(path), zip(graphs.hidden, graphs.given, strict=True)
                with own.holding(path):
                    block = replace(kinds[path], module=own.model.get_submodule(path))
                    parts = [verify(block, "forward", (hidden, *given[path]), graph) for hidden, given in inputs]
                found[block.index] = max(parts)
            graphs.hidden = graphs.through(path)
    return found


def _part(ours: Tensor, theirs: Tensor) -> float:
    return largest(ours - theirs) / max(float(theirs.abs().max()), 1e-30)


def _parting(block: TracedBlock, method: str, graph: Any, inputs: Sequence[Tensor]) -> str:
    """Name the module of a block, and the line of its source, that first gives what its graph nowhere has."""
    with _Values() as wanted:
        block.calls[method].run(block.module, *inputs)
    ours = _Nodes(graph, graph=vars(graph)["graphs"][method])
    ours.run(*inputs)
    names = {module: name for name, module in block.module.named_modules()}
    limit = NOISE * torch.finfo(inputs[0].dtype).eps
    for value, frames, owners in wanted.seen:
        if not any(each.shape == value.shape and _part(each, value) <= limit for each in ours.seen):
            module = next((owner for owner in owners if owner in names), block.module)
            path = f"{block.path}.{names[module]}".removesuffix(".")
            return f"{path} ({type(module).__name__}) {source_line(frames)}"
    return f"{block.path} ({type(block.module).__name__})"


class _Values(TorchFunctionMode):
    """Notes the numbers that every operation gives, the frames that it is called from, and the modules in these."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Sequence[traceback.FrameSummary], Sequence[Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(sys._getframe(1))]
            modules = [each for each in owners if isinstance(each, nn.Module)]
            self.seen.append((value, traceback.extract_stack(), modules))
        return value


class _Nodes(fx.Interpreter):
    """Notes the numbers that every node gives."""

    def __init__(self, module: Any, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.seen: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.seen.append(value)
        return value


class RandomWeights:
    """Weights for a module on the meta device: matrices around 0, vectors around 1.

    Of a large matrix some rows at a time are taken out of one table of random numbers, from another place in it for
    each, so that a block of any size takes the memory of this table.
    """

    def __init__(self, module: nn.Module) -> None:
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)}
        self._places = {name: APART * number for number, name in enumerate(self._shapes)}
        self._table = Tensor()

    def read(self, name: str) -> Any:
        """Draw a parameter, by its name in the module; the same every time."""
        name = name.removeprefix(".")
        shape, place = self._shapes[name], self._places[name]
        if len(shape) == 2 and shape.numel() > TABLE >= shape[1]:
            height, width = shape
            at_once = TABLE // width
            return StreamedWeight(height, at_once, lambda rows: self._rows(rows, width, place + rows.start // at_once))
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(place))
        return drawn * 0.1 if len(shape) > 1 else 1.0 + drawn * 0.1

    def _rows(self, rows: range, width: int, place: int) -> Tensor:
        if not self._table.numel():
            self._table = torch.randn(2 * TABLE, generator=torch.Generator().manual_seed(0)) * 0.1
        first = place * STEP % TABLE
        return self._table[first : first + len(rows) * width].view(-1, width)


def _random_inputs(call: BlockCall) -> tuple[Tensor, ...]:
    """Draw a few sequences of a few positions; positions and masks are what they are in a text."""
    alone = {where[0]: size for size, where in call.sizes.items() if len(where) == 1}
    small = dict(zip(alone.values(), (2, 5, 3), strict=False))  # sequences, positions, those of a past
    sums = {size: sum(small[alone[each]] for each in where) for size, where in call.sizes.items() if len(where) > 1}

    def resized(size: int) -> int:
        found = (few * (size // many) for many, few in small.items() if size % many == 0)
        return sums.get(size) or next(found, size)

    generator, drawn = torch.Generator().manual_seed(0), []
    for example in call.inputs.values():
        shape = [resized(size) for size in example.shape]
        if example.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator))
        elif example.dtype == torch.bool:
            drawn.append(torch.ones(shape, dtype=torch.bool).tril(shape[-1] - shape[-2]))
        else:
            drawn.append(torch.arange(shape[-1], dtype=example.dtype).expand(shape))
    return tuple(drawn)


def graph_module(block: TracedBlock) -> Any:
    """Make a block's graphs a module over its own tensors."""
    graphs = {method: copy.deepcopy(program.graph) for method, program in block.programs.items()}
    saved = set(block.module.state_dict(keep_vars=True))
    tensors = block.tensors()
    state = {name: tensor for name, tensor in tensors.items() if name in saved}
    return build(graphs, {name: tensor for name, tensor in tensors.items() if name not in saved}, state, block)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
