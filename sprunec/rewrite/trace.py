"""Trace a model block by block with torch.fx, and find in every block what can be cut.

The model stays a tree: only its blocks, the members of its module lists, become graphs. A block that also works with
past keys and values is traced a second time through `forward_cached`; both graphs share the block's tensors, so one
cut fits both. Nothing is found by name: sites follow from how axes flow (see `axes`, `flow`, `sites`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprunec.errors import TraceError
from sprunec.families.base import family_of
from sprunec.families.model_directory import empty_model
from sprunec.families.module_lists import blocks
from sprunec.rewrite.program import Call, Program, read_program
from sprunec.rewrite.sites import Site, find_sites

Inputs = Mapping[str, tuple[Any, ...]]


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
    """

    index: int
    path: str
    module: nn.Module
    programs: Mapping[str, Program]
    sites: Mapping[str, Site]
    fixed: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def forward(self) -> Program:
        return self.programs["forward"]

    def sublayers(self) -> tuple[str, ...]:
        """List the kinds present, in order: attention, feed_forward."""
        return tuple(residual.kind for residual in self.forward.residuals)

    def tensors(self) -> dict[str, Tensor]:
        return {name: attrgetter(name)(self.module) for name in self.forward.groups.tensors}


@lru_cache(maxsize=4)
def traced_shape(config: Any) -> tuple[TracedBlock, ...]:
    """Trace the blocks of a config's model, without weights; once in a run, whoever asks for it."""
    family = family_of(config)
    return trace_blocks(empty_model(config), family.examples(config), family.kinds(config))


def traced(model: nn.Module, config: Any) -> tuple[TracedBlock, ...]:
    """The traced blocks of a config, as those of a model that has weights."""
    return tuple(replace(block, module=model.get_submodule(block.path)) for block in traced_shape(config))


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


def trace_blocks(
    model: nn.Module, inputs: Mapping[str, Inputs], kinds: Mapping[str, Hashable] | None = None
) -> tuple[TracedBlock, ...]:
    """Trace every block that has inputs: by block path, then by method name.

    Args:
        kinds: by block path; blocks of one kind have the same code, constants and shapes, and are traced once.
    """
    owners = Counter(id(tensor) for _, block in blocks(model) for tensor in {*block.parameters()})
    known: dict[Hashable, Mapping[str, Program]] = {}
    found = []
    for index, (path, block) in enumerate(blocks(model)):
        if path in inputs:
            kind = path if kinds is None else kinds[path]
            if kind not in known:
                known[kind] = {method: _program(path, block, method, given) for method, given in inputs[path].items()}
            shared = {name for name, tensor in block.named_parameters() if owners[id(tensor)] > 1}
            sites, fixed, notes = find_sites(path, block, known[kind], shared)
            found.append(TracedBlock(index, path, block, known[kind], sites, fixed, notes))
    return tuple(found)


def _program(path: str, block: nn.Module, method: str, inputs: Sequence[Any]) -> Program:
    tracer = BlockTracer()
    tracer.traced_func_name = method
    try:
        graph = tracer.trace(block)
    except Exception as error:
        inner = f"{path}.{tracer.current}" if tracer.current else path
        kind = type(block.get_submodule(tracer.current)).__name__
        raise TraceError(f"{inner} ({kind}) cannot be traced {_source_line(error)}: {error}") from error
    given = (torch.empty_like(each, device="meta") if isinstance(each, Tensor) else each for each in inputs)
    return read_program(graph, block, tuple(given), tracer.calls)


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


def _source_line(error: Exception) -> str:
    """Find the last line of the model's own source that the error came through."""
    library = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((library, __file__))]
    return f"at {frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else "as it is"
