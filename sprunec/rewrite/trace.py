"""Trace a model block by block with torch.fx, and find in every block what can be cut.

The model stays a tree: only its blocks, the members of its module lists, become graphs. A block that also works with
past keys and values is traced a second time through `forward_cached`; both graphs share the block's tensors, so one
cut fits both. Nothing is found by name: sites follow from how axes flow (see `axes`, `flow`, `sites`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.errors import PassError, TraceError
from sprunec.families.block_calls import BlockCall, CalledBlock
from sprunec.families.module_lists import blocks
from sprunec.rewrite.kinds import block_kinds
from sprunec.rewrite.program import Program, read_program
from sprunec.rewrite.sites import Site, find_sites
from sprunec.rewrite.tracer import BlockTracer, ShapeTracer

Inputs = Mapping[str, tuple[Any, ...] | BlockCall]


@dataclass(frozen=True)
class TracedBlock:
    """A block as graphs over its own tensors.

    Attributes:
        path: its name in the model.
        module: the module that was traced, still holding the tensors.
        programs: by method name; "forward" always.
        sites: by unit: head, dim_head, dim_ff.
        fixed: by unit, the sizes of what looks like a site but cannot be cut.
        notes: why not.
        calls: by method, how the model calls the block, where it is of a library's own code.
    """

    index: int
    path: str
    module: nn.Module
    programs: Mapping[str, Program]
    sites: Mapping[str, Site]
    fixed: Mapping[str, int]
    notes: tuple[str, ...]
    calls: Mapping[str, BlockCall] = field(default_factory=dict)

    @property
    def forward(self) -> Program:
        return self.programs["forward"]

    def sublayers(self) -> tuple[str, ...]:
        """List the kinds present, in order: attention, feed_forward."""
        return tuple(residual.kind for residual in self.forward.residuals)

    def tensors(self) -> dict[str, Tensor]:
        return {name: attrgetter(name)(self.module) for name in self.forward.groups.tensors}


def check_cuttable(blocks: Iterable[TracedBlock], units: Iterable[str]) -> None:
    """Raise PassError for a unit that some block has and that cannot be cut there; says why."""
    for block in blocks:
        for unit in units:
            if unit not in block.sites and block.fixed.get(unit):
                why = next(
                    (note for note in block.notes if f" {unit} cannot be cut" in note), f"{block.path}: no {unit}"
                )
                raise PassError(why)


def trace(model: nn.Module, *inputs: Any) -> tuple[TracedBlock, ...]:
    """Run `model(*inputs)` once to see what its blocks are given, then trace each.

    Raises:
        TraceError: a block cannot be traced; names the module and the source line.
    """
    seen: dict[str, tuple[Any, ...]] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, given, path=path: seen.setdefault(path, given) and None)
        for path, block in blocks(model)
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return trace_blocks(model, {path: {"forward": given} for path, given in seen.items()})


def trace_called(model: nn.Module | None, called: Sequence[CalledBlock]) -> tuple[TracedBlock, ...]:
    """Trace the blocks of a model that were found on a copy of it; the traced ones hold the model's own modules.

    Args:
        model: None: the traced ones hold those of the copy.

    Raises:
        TraceError: a block cannot be traced; names the module, the source line, and what it does there.
    """
    shapes, kinds = [(block.path, block.module) for block in called], block_kinds(called)
    for kind in {*kinds.values()}:
        first, *_, last = [block for block in called if kinds[block.path] == kind] * 2
        if first is not last and _code(first) != _code(last):  # it computes with its place among the others
            kinds |= {path: (kind, path) for path, its in kinds.items() if its == kind}
    found = trace_blocks(called[0].module, {block.path: block.calls for block in called}, kinds, shapes)
    return tuple(
        replace(block, module=its.module if model is None else model.get_submodule(block.path), calls=its.calls)
        for block, its in zip(found, called, strict=True)
    )


def _code(block: CalledBlock) -> list[str]:
    return [str(_traced(block.path, block.module, method, call).graph) for method, call in block.calls.items()]


def trace_blocks(
    model: nn.Module,
    inputs: Mapping[str, Inputs],
    kinds: Mapping[str, Hashable] | None = None,
    among: Sequence[tuple[str, nn.Module]] = (),
) -> tuple[TracedBlock, ...]:
    """Trace every block that has inputs: by block path, then by method name.

    Args:
        kinds: by block path; blocks of one kind have the same code, constants and shapes, and are traced once.
        among: the model's blocks, where they are not the members of all its module lists.
    """
    every = among or tuple(blocks(model))
    owners = Counter(id(tensor) for _, block in every for tensor in {*block.parameters()})
    known: dict[Hashable, Mapping[str, Program]] = {}
    found = []
    for index, (path, block) in enumerate(every):
        if path in inputs:
            kind = path if kinds is None else kinds[path]
            if kind not in known:
                known[kind] = {method: _program(path, block, method, given) for method, given in inputs[path].items()}
            shared = {name for name, tensor in block.named_parameters() if owners[id(tensor)] > 1}
            sites, fixed, notes = find_sites(path, block, known[kind], shared)
            found.append(TracedBlock(index, path, block, known[kind], sites, fixed, notes))
    return tuple(found)


def _program(path: str, block: nn.Module, method: str, inputs: Sequence[Any] | BlockCall) -> Program:
    tracer = _traced(path, block, method, inputs)
    given = inputs.inputs.values() if isinstance(inputs, BlockCall) else inputs
    examples = (torch.empty_like(each, device="meta") if isinstance(each, Tensor) else each for each in given)
    return read_program(tracer.graph, block, tuple(examples), tracer.calls)


def _traced(path: str, block: nn.Module, method: str, inputs: Sequence[Any] | BlockCall) -> BlockTracer:
    tracer = ShapeTracer(inputs) if isinstance(inputs, BlockCall) else BlockTracer()
    tracer.traced_func_name = "forward" if isinstance(inputs, BlockCall) else method
    try:
        tracer.trace(block)
    except Exception as error:
        inner = f"{path}.{tracer.current}" if tracer.current else path
        kind, frames = type(block.get_submodule(tracer.current)).__name__, traceback.extract_tb(error.__traceback__)
        raise TraceError(f"{inner} ({kind}) cannot be traced {source_line(frames)}: {error}") from error
    return tracer


def source_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """Find the last line of a model's own source among those that are, or were, being run."""
    others = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f"at {own[-1].filename}:{own[-1].lineno} `{own[-1].line}`" if own else "as it is"
