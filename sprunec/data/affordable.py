"""On how many tokens models are compared: as many as a fixed number of operations allows; needs no torch."""

from __future__ import annotations

import sys

from sprunec.families.base_config import FORWARD, ModelConfig

# A comparison runs the masked model once and the small one up to five times, in float64 or float32. On two cores these
# operations take about ten seconds.
OPERATIONS, PER_PARAMETER = 250_000_000_000, 8 * FORWARD
LEAST_TOKENS, LEAST_TEXT = 64, 32
MOST_BATCHES, RANDOM_TEXT = 4, 64  # of held-out text; tokens in a row where there is none
STATES = 2**24  # numbers in all hidden states, or in all that blocks are given besides, together


def affordable_tokens(config: ModelConfig) -> int:
    """Count the tokens that a model of this size is compared on unless a plan says another number."""
    affordable = OPERATIONS // (PER_PARAMETER * config.parameters())
    return max(LEAST_TOKENS, LEAST_TEXT + config.overhead, affordable)


def compared_rows(
    config: ModelConfig, asked: int | None, rows: int, length: int, most: int = sys.maxsize
) -> tuple[int, int]:
    """Tell about how many rows, and of how many positions, models are compared on.

    Args:
        asked: how many tokens the plan wants.
        rows, length: of a batch of held-out text; 0 where there is none.
        most: no more tokens than these.
    """
    length = length or RANDOM_TEXT + config.overhead
    tokens = min(most, asked or min(affordable_tokens(config), length * (MOST_BATCHES * rows or 2)))
    length = min(length, tokens)
    return max(1, tokens // length), length
