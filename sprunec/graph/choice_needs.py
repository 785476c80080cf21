"""What measuring choices takes, before anything runs: text to refit on goes block by block beside text to measure on.

Of the latter, hidden states in front of every block are kept, and for "fisher" gradients at the outputs of projections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sprunec.families.base_config import FORWARD
from sprunec.graph.arithmetic import SOLVING, Text, by_block, forward, inside, projection_widths, solved
from sprunec.graph.model_size import ModelSize
from sprunec.graph.needs import EXACT, SINGLE, Amounts, Needs
from sprunec.machine import physical_memory
from sprunec.plan.scale import FLOAT, HEAD_LOGITS, KEPT_INSIDE, TAILS, rows_at_once, states_fit
from sprunec.plan.search.choices import Choice

HEAD_BYTES = 32  # for each logit: itself, its probability and their sums, one-hots, and gradients


@dataclass(frozen=True)
class Measuring:
    """How choices are measured.

    Attributes:
        fitted, text: what they are refitted on, and measured on.
        choices: those that change something.
        units: kinds that are cut.
        samples: of "fisher", else 0.
    """

    fitted: Text
    text: Text
    choices: Sequence[Choice]
    units: Sequence[str]
    samples: int


def choices_measured(model: ModelSize, how: Measuring, keep: str) -> Needs:
    """Count what measuring them takes; `keep` as in `by_block`."""
    widths, count = projection_widths(model.config, how.units), len(model.config.layers)
    found = solved(by_block(model, how.fitted, forward(model, how.fitted), keep=keep), model, how.fitted, widths, EXACT)
    states = float(FLOAT) * model.config.width * how.text.positions
    gradients = how.samples * len(widths) * states
    kept = sum(count * size for size in (states, gradients) if _in_memory(keep, 2 * count * size))
    moving = (1 + how.samples) * states
    memory = {**found.memory, "states": found.memory["states"] + kept + moving}
    rows = max(1, rows_at_once(model.config, how.text.length) // KEPT_INSIDE)
    computed = 2 * inside(model, min(how.text.sequences, rows), how.text.length)
    logits = HEAD_BYTES * min(HEAD_LOGITS, rows * how.text.length * model.config.vocab_size)
    memory["activations"] = max(memory["activations"], computed, logits)
    if how.samples:
        memory["moments"] += 2 * FLOAT * how.text.positions * sum(widths) + 2 * gradients
    else:  # a third block, and states of choices on their way behind it
        memory["blocks"] += FLOAT * model.largest_block
        together = max(Counter(choice.layer for choice in how.choices).values(), default=0)
        memory["states"] += min(max(TAILS, states), together * states) + states
    scratch = found.scratch + count * (states + gradients) + 2 * moving
    reads = (3 if how.samples else 2 + count / 2) * model.nbytes
    return replace(found, memory=memory, scratch=scratch, reads=reads, operations=_operations(model, how, found))


def _in_memory(keep: str, size: float) -> bool:
    return keep == "memory" or (keep == "auto" and states_fit(size, physical_memory()))


def _operations(model: ModelSize, how: Measuring, fitting: Needs) -> Amounts:
    """Count what the dense model takes, and each choice's refit and its change, or the blocks behind it."""
    layers, outputs = model.config.layers, model.config.width
    blocks, whole = forward(model, how.text), forward(model, how.text, head=True)
    single, exact = fitting.operations[SINGLE], 0.0
    for choice in how.choices:
        width = layers[choice.layer].inner.get(choice.sublayer, 0) if choice.kept else 0
        exact += (SOLVING[EXACT] * width + FORWARD * outputs) * float(width) ** 2
        if how.samples:
            single += FORWARD * float(width) * outputs * how.text.positions
        else:
            single += blocks * (len(layers) - choice.layer) / len(layers) + whole - blocks
    # forward; forward and back, where weights have no gradients; and forward once more
    single += 5 * blocks + (2 + how.samples) * (whole - blocks) if how.samples else whole
    return {SINGLE: single, EXACT: exact}
