"""On how many tokens models are compared: as many as a fixed number of operations allows; needs no torch."""

from __future__ import annotations

from sprunec.families.base_config import FORWARD, ModelConfig

# A comparison runs the masked model once and the small one up to five times, in float64 or float32. On two cores these
# operations take about ten seconds.
OPERATIONS, PER_PARAMETER = 250_000_000_000, 8 * FORWARD
LEAST_TOKENS, LEAST_TEXT = 64, 32
STATES = 2**24  # numbers in all hidden states, or in all that blocks are given besides, together


def affordable_tokens(config: ModelConfig) -> int:
    """Count the tokens that a model of this size is compared on unless a plan says another number."""
    affordable = OPERATIONS // (PER_PARAMETER * config.parameters())
    return max(LEAST_TOKENS, LEAST_TEXT + config.overhead, affordable)
