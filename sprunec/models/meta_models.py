"""Models without weights: a config's, with what its layers have left, and what a trace finds in it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.models.verify import verify_kinds
from sprunec.rewrite.surgery import rewrite
from sprunec.rewrite.trace import TracedBlock, trace_blocks, trace_called
from sprunec.units import Cut


def empty_model(config: ModelConfig) -> nn.Module:
    """Build a model on the meta device: a shape without memory."""
    family = family_of(config)
    with torch.device("meta"):
        model: nn.Module = family.build(config)
    if family.called is None:
        return model
    # A library's class has all layers alike. What of its layers is left decides sizes alone, and not which units these
    # are; so the first ones stand for any.
    whole = traced_whole(config.uncut)
    blocks = [replace(block, module=model.get_submodule(block.path), calls={}) for block in whole]
    return rewrite(model, blocks, first_units(config.uncut, config))


@lru_cache(maxsize=2)
def traced_whole(config: ModelConfig) -> tuple[TracedBlock, ...]:
    """Trace a library's blocks, and hold them against their modules: in every run."""
    family = family_of(config)
    assert family.called is not None
    with torch.device("meta"):
        blocks = trace_called(family.build(config), family.called(config))
    verify_kinds(blocks)
    return blocks


def first_units(whole: ModelConfig, config: ModelConfig) -> Cut:
    """Keep as many units of each kind as a config has of another, the first ones: of heads in each of their groups."""
    found = []
    for before, after in zip(whole.layers, config.layers, strict=True):
        left = {unit: tuple(range(count)) for unit, count in after.counts.items()}
        if "kv_group" in left:
            each, kept = (shape.counts["head"] // shape.counts["kv_group"] for shape in (before, after))
            left["head"] = tuple(group * each + head for group in left["kv_group"] for head in range(kept))
        found.append(left)
    return Cut(found)


@lru_cache(maxsize=4)
def traced_shape(config: ModelConfig) -> tuple[TracedBlock, ...]:
    """Trace the blocks of a config's model, without weights; once in a run, whoever asks for it."""
    family, model = family_of(config), empty_model(config)
    kinds: Mapping[str, Hashable]
    if family.called is None:
        kinds = family.kinds(config)
    else:  # blocks of one kind have one program, and are still alike where as much is left of them
        pairs = zip(traced_whole(config.uncut), config.layers, strict=True)
        kinds = {block.path: (id(block.forward), layer) for block, layer in pairs}
    return trace_blocks(model, family.examples(config), kinds)


def traced(model: nn.Module, config: ModelConfig) -> tuple[TracedBlock, ...]:
    """The traced blocks of a config, as those of a model that has weights."""
    return tuple(replace(block, module=model.get_submodule(block.path)) for block in traced_shape(config))
