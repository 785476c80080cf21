"""What measuring choices takes, before anything runs: text to refit on goes block by block beside text to measure on.

Of the latter, hidden states in front of every block are kept, and for "fisher" gradients at the outputs of projections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sprunec.families.base_config import FORWARD
from sprunec.graph.arithmetic import SOLVED, SOLVING, Text, by_block, forward, inside, projection_widths
from sprunec.graph.model_size import ModelSize
from sprunec.graph.needs import EXACT, SINGLE, Amounts, Needs
from sprunec.machine import physical_memory
from sprunec.plan.scale import DOUBLE, FLOAT, HEAD_LOGITS, KEPT_INSIDE, TAILS, rows_at_once, states_fit
from sprunec.plan.search.choices import Choice, nested

HEAD_BYTES = 32  # for each logit: itself, its probability and their sums, one-hots, and gradients


@dataclass(frozen=True)
class Measuring:
    """How choices are measured.

    Attributes:
        fitted, text: what they are refitted on, and measured on.
        choices: those that change something.
        units: kinds that are cut.
        products: those of them that are scored by products of what goes into projections.
        samples: of "fisher", else 0.
        batch: rows that come together.
    """

    fitted: Text
    text: Text
    choices: Sequence[Choice]
    units: Sequence[str]
    products: Sequence[str]
    samples: int
    batch: int


def choices_measured(model: ModelSize, how: Measuring, keep: str) -> Needs:
    """Count what measuring them takes; `keep` as in `by_block`."""
    widths, count = projection_widths(model.config, how.units), len(model.config.layers)
    found = by_block(model, how.fitted, forward(model, how.fitted), keep=keep)
    states = float(FLOAT) * model.config.width * how.text.positions
    gradients = how.samples * len(widths) * states
    kept = sum(count * size for size in (states, gradients) if _in_memory(keep, 2 * count * size))
    moving = (1 + how.samples) * states
    memory = {**found.memory, "states": found.memory["states"] + kept + moving}
    at_once = rows_at_once(model.config, how.text.length)
    rows = min(how.batch, max(1, at_once // KEPT_INSIDE))
    looked_at = inside(model, min(how.batch, at_once), how.text.length)
    computed = 2 * inside(model, rows, how.text.length)
    logits = HEAD_BYTES * min(HEAD_LOGITS, rows * how.text.length * model.config.vocab_size)
    adding, solving = moments_of_choices(model, how, widths, rows * how.text.length)
    # the dense model, forward and back; moments; and solving
    stages = (max(computed, logits), 0.0), (looked_at, adding), (0.0, solving)
    memory["activations"], memory["moments"] = max(stages, key=sum)
    if not how.samples:  # a third block, and states of choices on their way behind it
        memory["blocks"] += FLOAT * model.largest_block
        together = max(Counter(choice.layer for choice in how.choices).values(), default=0)
        memory["states"] += min(max(TAILS, states), together * states) + states
    scratch = found.scratch + count * (states + gradients) + 2 * moving
    reads = (3 if how.samples else 2 + count / 2) * model.nbytes
    operations = _operations(model, how, found.operations[SINGLE], widths)
    return replace(found, memory=memory, scratch=scratch, reads=reads, operations=operations)


def moments_of_choices(model: ModelSize, how: Measuring, widths: Sequence[int], rows: int) -> tuple[float, float]:
    """Count the bytes of moments, half matrices each, while they are added up; and of solving with one of them.

    Sums are in float64, and rounded to float32 behind the last batch; the widest one's goes once its factor is there.
    """
    scored = max(projection_widths(model.config, how.products), default=0) if how.products else 0
    largest, whole = max(widths, default=0), float(sum(width**2 for width in widths))
    rounded, factor = FLOAT / 2 * whole, DOUBLE / 2 * largest**2
    if how.samples:  # inputs and gradients, as they come and as they are worked on
        using = 1.0 * (1 + how.samples) * 2 * FLOAT * rows * largest
    else:
        using = SOLVED * FLOAT * model.config.width * largest + inside(model, rows // how.text.length, how.text.length)
        using += factor - FLOAT / 2 * largest**2
    solving = max((DOUBLE + FLOAT) * scored**2, factor, using)
    return DOUBLE / 2 * whole, rounded + solving


def _in_memory(keep: str, size: float) -> bool:
    return keep == "memory" or (keep == "auto" and states_fit(size, physical_memory()))


def _operations(model: ModelSize, how: Measuring, single: float, widths: Sequence[int]) -> Amounts:
    """Count what the dense model takes, moments, factors, and by choice its effects, or the blocks behind it."""
    layers, outputs, positions = model.config.layers, model.config.width, how.text.positions
    blocks, whole = forward(model, how.text), forward(model, how.text, head=True)
    single += len(layers) * sum(float(width) ** 2 for width in widths) * how.fitted.positions  # of a product, half
    exact = 0.0
    for some in nested(how.choices):
        if some[0].kept:
            width = float(layers[some[0].layer].inner.get(some[0].sublayer, 0))
            exact += SOLVING[EXACT] * width**3
            if how.samples:  # the block runs again, up to there
                single += (1 + how.samples) * width**2 * positions
                single += FORWARD * width * outputs * how.samples * positions + blocks / len(layers)
            else:
                exact += len(some) * outputs * width**2
        if not how.samples:
            single += len(some) * (blocks * (len(layers) - some[0].layer) / len(layers) + whole - blocks)
    # forward; forward and back, where weights have no gradients
    single += 4 * blocks + (2 + how.samples) * (whole - blocks) if how.samples else whole
    return {SINGLE: single, EXACT: exact}
