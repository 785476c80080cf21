"""What models are compared on, as many tokens as a fixed number of operations allows, and how far they may be apart."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.passes.job import Job

if TYPE_CHECKING:
    from sprunec.data.batches import Batch

TOLERANCE = 1e-5
NOISES = 4.0  # a difference may be so many times the arithmetic's own noise
# A comparison runs the masked model once and the small one up to five times, in float64 or float32. On two cores these
# operations take about ten seconds.
OPERATIONS, PER_PARAMETER = 250_000_000_000, 16
LEAST_TOKENS, LEAST_TEXT, MOST_BATCHES = 64, 32, 4
RANDOM_TEXT = 64  # words in a row
STATES = 2**24  # numbers in all hidden states, or in all attention biases, together


def affordable_tokens(config: ModelConfig) -> int:
    """How many tokens a model of this size is compared on unless a plan says another number."""
    return max(LEAST_TOKENS, LEAST_TEXT + config.prompt_length, OPERATIONS // (PER_PARAMETER * config.parameters()))


def looks(job: Job[Any], config: ModelConfig, most: int | None = None) -> Iterator[list[Batch]]:
    """Held-out text where the plan has any, else words drawn at random.

    Args:
        most: take no more tokens than these, whatever the plan asks for or can be afforded.

    Returns:
        As many batches at a time as there is room for; in all at most so many columns, the prompts' among them, and
        one row at least. More than one such group is only given where the plan asks for a number of tokens.
    """
    asked = job.options.tokens
    tokens = min(sys.maxsize if most is None else most, asked or affordable_tokens(config))
    if "data" in job.inputs:
        held_out: Iterable[Batch] = job.data(config).held_out_batches()
    else:
        held_out = [random_batch(config, rows=-(-tokens // (RANDOM_TEXT + config.prompt_length)) if asked else 2)]
    batches = _first_tokens(held_out if asked else islice(held_out, MOST_BATCHES), config, tokens)
    groups = _groups(batches, config)
    return groups if asked else islice(groups, 1)


def _first_tokens(batches: Iterable[Batch], config: ModelConfig, tokens: int) -> Iterator[Batch]:
    """Whole rows while they fit; where not one fits, the beginning of one."""
    left = tokens
    for batch in batches:
        rows, columns = batch.targets.shape
        rows = min(rows, left // columns)
        if rows < 1 and left == tokens:
            rows, columns = 1, min(columns, max(tokens, config.prompt_length + 1))
        if rows < 1:
            return
        yield batch.part(slice(rows), columns)
        left -= rows * columns


def _groups(batches: Iterable[Batch], config: ModelConfig) -> Iterator[list[Batch]]:
    """Batches, or parts of them, that are held at a time."""
    group: list[Batch] = []
    states = 0
    for batch in batches:
        rows, columns = batch.targets.shape
        each = columns * max(config.dim_model, config.num_heads * columns)
        at_once = max(1, STATES // each)
        for first in range(0, rows, at_once):
            part = batch.part(slice(first, first + at_once), columns)
            size = part.targets.size(0) * each
            if group and states + size > STATES:
                yield group
                group, states = [], 0
            group.append(part)
            states += size
    if group:
        yield group


def random_batch(config: ModelConfig, rows: int = 2, text: int = RANDOM_TEXT) -> Batch:
    import torch

    from sprunec.data.batches import PROMPT_TASK, TEXT_SEGMENT, Batch

    draw = torch.Generator().manual_seed(0)
    prompt, columns = config.prompt_length, config.prompt_length + text
    words = torch.randint(config.vocab_size, (rows, text), generator=draw)
    is_text = torch.arange(columns) >= prompt
    task, kind = min(PROMPT_TASK, config.prompt_types - 1), min(TEXT_SEGMENT, config.segment_types - 1)
    inputs = {
        "input": torch.cat([(torch.arange(prompt) + task * prompt).expand(rows, -1), words], 1),
        "length": torch.full((rows,), columns),
        "context": (~is_text).expand(rows, -1),
        "segment": (is_text * kind).expand(rows, -1),
        "span": torch.zeros(rows, columns, dtype=torch.long),
    }
    return Batch(inputs, inputs["input"])
