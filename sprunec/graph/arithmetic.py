"""The one arithmetic of what passes need, before anything runs; needs no torch.

A pass goes block by block, from file to file, or has the model in memory; its row in the table of passes says which
(`Pass.needs`), with what is here.

    block by block    two blocks, one at work in float32 while the next is read as it is stored; the hidden states of
                      all sequences, in memory or in a file; what some rows leave inside a block; second moments of what
                      goes into the projections of one block, and what solving with one of them takes
    file to file      some rows of a tensor
    in memory         4 bytes a parameter; to train, see `plan.scale`
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sprunec.data.affordable import STATES, compared_rows
from sprunec.families.base_config import FORWARD, TRAINING, LayerShape, ModelConfig, token_operations
from sprunec.graph.model_size import ModelSize, blocks_of
from sprunec.graph.needs import EXACT, SINGLE, TRAINED, Needs, Whole
from sprunec.machine import physical_memory
from sprunec.plan.scale import (
    DIRECTIONS,
    DOUBLE,
    FLOAT,
    LOGITS,
    TOGETHER,
    Setting,
    activations,
    block_activations,
    cost,
    rows_at_once,
    states_fit,
)
from sprunec.units import INSIDE, gate_units

CHUNKS = 1e8  # bytes of rows and buffers, of what goes from file to file
SOLVED = 2  # weights (O, C) that are there, besides a matrix (C, C), while a projection is solved for
# Operations for each of C³: a factor, and of features that are removed its inverse, and what goes out of that.
SOLVING = {SINGLE: 4 / 3, EXACT: 1 / 3}
TRIED = 4  # ridges, mostly, before the one that is taken


@dataclass(frozen=True)
class Text:
    """So many sequences, of at most so many positions."""

    sequences: int
    length: int

    @property
    def positions(self) -> int:
        return self.sequences * self.length


def forward(model: ModelSize, text: Text, *, head: bool = False) -> float:
    """Count the operations of one forward through all blocks, and through the head."""
    return token_operations(model.config, text.length, head=head, blocks=model.in_blocks) * text.positions


def by_block(model: ModelSize, text: Text, operations: float, *, keep: str, head: bool = False) -> Needs:
    """Count what going block by block takes, in float32.

    Args:
        keep: where the plan wants hidden states, "memory" or "disk"; "auto": in memory where they take little of it.
        head: the way goes on through it, where sequences go in groups from the first block on.
    """
    groups = max(1, math.ceil(text.positions * model.config.width / TOGETHER)) if head else 1
    states, rows = float(FLOAT) * model.config.width * text.positions / groups, rows_at_once(model.config, text.length)
    logits = 3.0 * FLOAT * min(LOGITS, rows * text.length * model.config.vocab_size) if head else 0.0
    memory = {
        "blocks": (FLOAT + model.item) * model.largest_block,  # the next one as it is stored
        "states": states if keep == "memory" or (keep == "auto" and states_fit(states, physical_memory())) else 0.0,
        "activations": max(logits, inside(model, min(text.sequences, rows), text.length)),
    }
    # those behind a block are written while those in front of it are there: a run that was killed finds them again
    reads, tokens = groups * model.nbytes, float(text.positions)
    return Needs(memory, scratch=2 * states, reads=reads, operations={SINGLE: operations}, tokens=tokens, opened=1)


def looking(model: ModelSize, text: Text, *, keep: str) -> Needs:
    """Count what comparing the hidden states in front of blocks takes."""
    found = by_block(model, text, forward(model, text), keep=keep)
    kept = min(DIRECTIONS, text.positions * model.config.width)
    return replace(found, memory={**found.memory, "directions": FLOAT * (len(model.config.layers) + 1.0) * kept})


def without_blocks(model: ModelSize, text: Text, rounds: int, *, keep: str) -> Needs:
    """Count what the losses without each block take, so many times; up to the block that is missing models are one."""
    count = len(model.config.layers)
    blocks, whole = forward(model, text), forward(model, text, head=True)
    operations = rounds * ((count + 1) / 2 * blocks + count * (whole - blocks))
    found = by_block(model, replace(text, sequences=count * text.sequences), operations, keep=keep, head=True)
    return replace(found, reads=rounds * found.reads, tokens=rounds * found.tokens)


def inside(model: ModelSize, sequences: int, length: int) -> float:
    """Count the bytes of what is computed inside of a block, in float32."""
    setting, shapes = Setting(sequences=sequences, positions=length), dict[LayerShape, int]()
    for index, layer in enumerate(model.config.layers):
        shapes.setdefault(layer, index)
    return max((block_activations(model.config, index, setting) for index in shapes.values()), default=0.0)


def projection_widths(config: ModelConfig, units: Collection[str]) -> list[int]:
    """Tell how wide what goes into the projections is that units inside sublayers go into, at most."""
    kinds = dict.fromkeys(INSIDE[unit] for unit in gate_units(units) if unit in INSIDE)
    return [max((layer.inner.get(kind, 0) for layer in config.layers), default=0) for kind in kinds]


def solved(
    needs: Needs, model: ModelSize, text: Text, widths: Sequence[int], kind: str, unseen: Text | None = None
) -> Needs:
    """Add the moments of a way block by block, and removing features one after the other, or refitting by them.

    Args:
        widths: of what goes into the projections of a block.
        kind: the arithmetic: features are removed in float32, and weights refitted in float64; there a moment is half
            a matrix.
        unseen: of the text, what a ridge is chosen by, for which as many rows of what goes into projections are there.
    """
    item, outputs = {SINGLE: FLOAT, EXACT: DOUBLE}[kind], model.config.width
    adding = sum(float(width) ** 2 for width in widths) * text.positions  # a product of which half is computed
    solving = sum((SOLVING[kind] * width + FORWARD * outputs) * float(width) ** 2 for width in widths)
    operations = {SINGLE: needs.operations[SINGLE] + len(model.config.layers) * adding, EXACT: 0.0}
    operations[kind] += len(model.config.layers) * solving
    largest, rows = max(widths, default=0), 0 if unseen is None else unseen.positions
    operations[kind] += TRIED * len(model.config.layers) * solving if rows else 0
    size = sum(FLOAT * width**2 for width in widths) + item * (largest**2 + SOLVED * outputs * largest)
    size += FLOAT * rows * sum(widths)
    return replace(needs, memory={**needs.memory, "moments": size}, operations=operations)


def by_tensor(model: ModelSize) -> Needs:
    """Count what reading one tensor after the other takes, with its squares in float32."""
    return Needs({"weights": 3.0 * FLOAT * _largest_tensor(model.config)}, reads=model.nbytes)


def by_rows(model: ModelSize, made: Iterable[ModelSize]) -> Needs:
    """Count what writing models takes some rows at a time, of which nothing is computed."""
    sizes = list(made)
    disk, least = sum(each.nbytes for each in sizes), sum(each.certain(each.nbytes) for each in sizes)
    return Needs({"weights": CHUNKS}, disk, reads=model.nbytes, least_disk=least)


def sparse(model: ModelSize, targeted: int) -> Needs:
    """Count what a mask over so many weights takes, a byte each, and writing the model with it."""
    memory = {"masks": float(targeted), "weights": 3.0 * FLOAT * _largest_tensor(model.config)}
    whole = Whole(model.certain(targeted), 0.0, "a mask of all weights", "make fewer tensors sparse")
    return Needs(memory, model.nbytes, reads=3 * model.nbytes, least_disk=model.certain(model.nbytes), whole=whole)


def compared(sweeps: Sequence[tuple[ModelSize, str]], options: Any, most: int = sys.maxsize) -> Needs:
    """Count what a comparison takes, block by block, and of a large one matrix by matrix.

    Args:
        sweeps: each goes through a model in one arithmetic.
        options: which tokens the plan asks for, and of how many a batch is.
        most: it is on no more tokens.
    """
    largest = max((model for model, _ in sweeps), key=lambda model: model.largest_block)
    config, items = largest.config, {SINGLE: FLOAT, EXACT: DOUBLE}
    text = Text(*compared_rows(config, options.tokens, options.batch_size, options.max_length, most))
    at_once, operations = min(text.positions, max(1, STATES // config.width)), dict.fromkeys(items, 0.0)
    rows = max(1, min(text.sequences, options.batch_size or text.sequences, at_once // text.length))
    for model, kind in sweeps:
        operations[kind] += forward(model, text, head=True)
    memory = {
        "blocks": 2.0 * DOUBLE * min(largest.largest_block, _largest_matrix(config)),
        "states": float(sum(items[kind] for _, kind in sweeps)) * config.width * at_once,
        "activations": DOUBLE / FLOAT * inside(largest, 2 * rows, text.length),  # a block is run on two models' states
    }
    reads, tokens = sum(model.nbytes for model, _ in sweeps), float(len(sweeps) * text.positions)
    return Needs(memory, reads=reads, operations=operations, tokens=tokens, opened=len(sweeps) // 2 + 1)


def verified(model: ModelSize, tokens: int) -> Needs:
    """Count what running a block of each kind takes, as its module and as its graph."""
    layers = list(model.config.layers)
    there = 1 + max((layers.index(layer) for layer in layers), default=0)
    blocks = blocks_of(model.config)[:there]
    memory = {"blocks": 2.0 * FLOAT * max(blocks, default=0)}
    operations = 2.0 * FORWARD * sum(blocks) * tokens
    return Needs(memory, reads=2 * model.item * sum(blocks), operations={SINGLE: operations}, traced=True)


def backward(model: ModelSize, text: Text, rows: int, remedy: str) -> Needs:
    """Count what gradients on the way back to gates take: the model, and all that so many rows leave in it."""
    size, kept = float(FLOAT) * model.parameters, Setting(sequences=rows, positions=text.length)
    memory = {"model": size, "activations": activations(model.config, kept)}
    whole = Whole(model.certain(size), model.certain(size), "the model in memory", remedy)
    operations = TRAINING / FORWARD * forward(model, text, head=True)
    tokens = float(text.positions)
    return Needs(memory, reads=model.nbytes, operations={TRAINED: operations}, whole=whole, tokens=tokens, opened=1)


def trained(model: ModelSize, setting: Setting, operations: float, tokens: float) -> Needs:
    """Count what training on one device takes; saves are there twice, while one takes the other's place."""
    found, size = cost(model.config, setting), float(FLOAT) * model.parameters
    memory = {"model": found.weights, "training": found.gradients + found.moments + found.working}
    remedy = "train on more devices with --devices, or first cut more by scores, which goes block by block"
    what = "weights, gradients and moments in memory"
    whole = Whole(model.certain(size), model.certain(found.state), what, remedy)
    return Needs(
        memory | {"activations": found.activations},
        disk=size,
        scratch=2 * (found.gradients + found.moments),  # as many weights as gradients
        reads=model.nbytes + setting.teacher,
        operations={TRAINED: operations},
        least_disk=model.certain(size),
        whole=whole,
        tokens=tokens,
        opened=1,
    )


def initialised(model: ModelSize) -> Needs:
    """Count what a new model takes."""
    what, remedy = "a new model in memory", "give a smaller config, or a checkpoint"
    size = model.nbytes
    return Needs({"model": size}, size, least_disk=size, whole=Whole(size, 0.0, what, remedy))


def raced(models: Sequence[ModelSize], text: Text, operations: float, lasts: float) -> Needs:
    """Count what measuring models side by side takes, the largest first; it is left out where they have no room."""
    size, reads = float(FLOAT) * sum(model.parameters for model in models), sum(model.nbytes for model in models)
    if size > physical_memory():
        return Needs()
    read = float(FLOAT) * _largest_tensor(models[0].config)  # the others have their place already, or had it
    logits = float(FLOAT) * text.positions * models[0].config.vocab_size
    computed = max(logits, inside(models[0], text.sequences, text.length))
    memory = {"model": size, "weights": read, "activations": computed}
    return Needs(memory, reads=reads, operations={SINGLE: operations}, opened=len(models), lasts=lasts)


def _largest_tensor(config: ModelConfig) -> int:
    return max(map(math.prod, config.tensors().values()), default=0)


def _largest_matrix(config: ModelConfig) -> int:
    """Count the numbers of the largest one in a block."""
    return config.width * max((inner for layer in config.layers for inner in layer.inner.values()), default=0)
