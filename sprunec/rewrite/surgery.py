"""Edit traced graphs: cut them to what is kept, and make graph modules of them.

A cut changes sizes in views, selects the columns that this block still reads of what all blocks share, and bypasses
absent sublayers. Divisors and scales stay: they are constants of the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprunec.families.block_calls import hand_on
from sprunec.rewrite.edits import bypass, cut_buffers, freeze_sizes, select_shared, set_constants
from sprunec.rewrite.keep import keeps
from sprunec.rewrite.program import detours
from sprunec.rewrite.recipe import absent, make_recipe
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut


def rewrite(model: nn.Module, blocks: Sequence[TracedBlock], kept: Cut) -> nn.Module:
    """Replace the traced blocks of `model`, in place, by graph modules that hold only what is `kept` of each."""
    recipe = make_recipe(blocks, kept)
    for block in blocks:
        prefix = f"{block.path}."
        state = {prefix + name: tensor for name, tensor in block.tensors().items()}
        cut = {name.removeprefix(prefix): tensor for name, tensor in recipe.cut(state).items()}
        model.set_submodule(block.path, cut_block(block, kept, cut))
    return model


def cut_block(block: TracedBlock, kept: Cut, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Make the block a graph module over already cut state `tensors`."""
    graphs = {method: copy.deepcopy(program.graph) for method, program in block.programs.items()}
    attributes, device = dict[str, Any](), index_device(block)
    for method, program in block.programs.items():
        keep = keeps(block, kept, method)
        freeze_sizes(graphs[method], program, keep)
        set_constants(graphs[method], program, keep)
        attributes |= cut_buffers(block, program, keep)
        attributes |= select_shared(graphs[method], block.forward, keeps(block, kept, "forward"), device)
        for add, stream in detours(absent(block, program, kept)).items():
            bypass(graphs[method], add, stream)
    return build(graphs, attributes, tensors, block)


def index_device(block: TracedBlock) -> torch.device:
    """Choose where new indices go: with the block's tensors, but never on meta, for nothing else has their values."""
    device = next(iter(block.tensors().values()), torch.empty(0)).device
    return torch.device("cpu") if device.type == "meta" else device


def build(
    graphs: Mapping[str, fx.Graph],
    buffers: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    block: TracedBlock,
) -> fx.GraphModule:
    """Build one graph module with a compiled method per graph, which it keeps by name in `graphs`.

    `buffers` are left out of its state dict.
    """
    attributes: dict[str, Any] = dict(tensors)
    for name, old in block.tensors().items():
        if isinstance(old, nn.Parameter) and name in tensors and not isinstance(tensors[name], nn.Parameter):
            attributes[name] = nn.Parameter(tensors[name].detach(), requires_grad=old.requires_grad)
    attributes |= buffers
    for graph in graphs.values():
        for node in graph.nodes:
            if node.op == "call_module":
                attributes[str(node.target)] = block.module.get_submodule(str(node.target))
    module = fx.GraphModule(attributes, graphs["forward"], class_name="".join(p.title() for p in block.path.split(".")))
    for method, graph in graphs.items():
        if method != "forward":
            # Every graph module has a class of its own, so this adds the method to this block alone.
            setattr(type(module), method, type(fx.GraphModule(attributes, graph)).forward)
    vars(module)["graphs"] = dict(graphs)
    hand_on(block.module, module)
    if "forward" in block.calls:
        _take_place(module, block)
    for name in buffers:
        owner, _, leaf = name.rpartition(".")
        if name in dict(module.named_buffers()):
            module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
    return module


def _take_place(module: fx.GraphModule, block: TracedBlock) -> None:
    """Let a graph module be called as its model calls the block: with keywords, tuples and what else there is."""
    call = block.calls["forward"]
    module.register_forward_pre_hook(lambda _, args, kwargs: (call.tensors(args, kwargs), {}), with_kwargs=True)
    module.register_forward_hook(lambda _, __, states: call.result(states))
