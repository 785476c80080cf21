"""What models are compared on: as many positions as a fixed number of operations allows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch

from sprunec.data.affordable import MOST_BATCHES, RANDOM_TEXT, STATES, affordable_tokens
from sprunec.data.batches import Batch, Data, Packer, grouped
from sprunec.families.base import Document, family_of
from sprunec.families.base_config import ModelConfig


def compared_batches(
    data: Data | None, config: ModelConfig, asked: int | None, most: int = sys.maxsize
) -> Iterator[list[Batch]]:
    """Take held-out text where there is any, else tokens drawn at random.

    Args:
        asked: how many tokens the plan wants.
        most: take no more than these, whatever is asked for or can be afforded.

    Returns:
        As many batches at a time as there is room for; in all at most so many positions, the family's own among them,
        and one row at least. More than one such group is only given where the plan asks for a number of tokens.
    """
    tokens, least = min(most, asked or affordable_tokens(config)), config.overhead + 1
    rows = -(-tokens // (RANDOM_TEXT + least - 1)) if asked else 2
    held_out: Iterable[Batch] = [random_batch(config, rows)] if data is None else data.held_out_batches()
    groups = _groups(_first(held_out if asked else islice(held_out, MOST_BATCHES), tokens, least), config)
    return groups if asked else islice(groups, 1)


def _first(batches: Iterable[Batch], tokens: int, least: int) -> Iterator[Batch]:
    """Take whole rows while they fit; where not one does, the beginning of one, of at least so many positions."""
    left = tokens
    for batch in batches:
        rows, width = batch.targets.shape
        rows = min(rows, left // width)
        if rows < 1 and left == tokens:
            rows, width = 1, min(width, max(tokens, least))
        if rows < 1:
            return
        yield batch.part(slice(rows), width)
        left -= rows * width


def _groups(batches: Iterable[Batch], config: ModelConfig) -> Iterator[list[Batch]]:
    """Group batches, or parts of them, by what is held at a time."""

    def numbers(batch: Batch) -> int:
        rows, width = batch.targets.shape
        return rows * family_of(config).row_numbers(config, width)

    return grouped(_parts(batches, config), numbers, STATES)


def _parts(batches: Iterable[Batch], config: ModelConfig) -> Iterator[Batch]:
    for batch in batches:
        rows, width = batch.targets.shape
        at_once = max(1, STATES // family_of(config).row_numbers(config, width))
        yield from (batch.part(slice(first, first + at_once), width) for first in range(0, rows, at_once))


def random_batch(config: ModelConfig, rows: int = 2, text: int = RANDOM_TEXT) -> Batch:
    """Draw texts at random, always the same; each token is asked for in its own place."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, text), generator=draw).numpy()
    documents = [[Document(row, np.zeros(text, dtype=bool), row)] for row in tokens]
    return Packer(config, config.overhead + text).pack(documents)
