"""What choices cost, in numbers that add up: parameters, operations, bytes, seconds; needs no torch.

A cost is nothing of its own. It is what the one arithmetic of whole models says with the choice and without it, so that
the base, which no choice changes, and the costs of a solution sum to what that arithmetic says of the cut model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sprunec.families.base_config import ModelConfig, token_operations
from sprunec.families.cards import card_of
from sprunec.plan.search.choices import Choice, chosen
from sprunec.units import sublayers_of

Measure = Callable[[ModelConfig], float]  # of a whole model, by layer and sublayer a sum


@dataclass(frozen=True)
class Costs:
    """What a model has whatever is chosen, and by choice what that adds; of an absent block it may be less than none.

    What both sublayers of a layer share, as a norm in front of both, goes with a block only: where they are absent as
    two choices, the sum is above the cut model by that.
    """

    base: float
    each: tuple[float, ...]

    def total(self, numbers: Iterable[int]) -> float:
        """Add up a solution, given by the numbers of its choices."""
        return self.base + sum(self.each[number] for number in numbers)


def costs(config: ModelConfig, choices: Sequence[Choice], measure: Measure) -> Costs:
    """Take what is measured of a whole model apart, by choice."""
    parts = _Parts(config, measure)
    dense = sum(parts.sublayers(index) for index in range(len(config.layers)))
    return Costs(measure(config) - dense, tuple(parts.cost(choice) for choice in choices))


class _Parts:
    """One layer at a time, the others being bare; layers that are alike are measured once."""

    def __init__(self, config: ModelConfig, measure: Measure) -> None:
        self._config, self._measure, self._windows = config, measure, card_of(config).windows(config)
        self._bare = [layer.resized(dict.fromkeys(layer.counts, 0)) for layer in config.layers]
        self._found: dict[Any, float] = {}

    def cost(self, choice: Choice) -> float:
        """Say what a choice adds to a layer without the sublayer that it is about."""
        there = self._with(choice)
        if choice.sublayer == "block":
            return there - self._with(None, choice.layer) + self.sublayers(choice.layer)
        return there - self._with(Choice(choice.layer, choice.sublayer, {}))

    def sublayers(self, index: int) -> float:
        """Add up what the sublayers of a layer cost that is as it is."""
        kinds = sublayers_of(self._config.layers[index].counts)
        return sum(self._with(None, index) - self._with(Choice(index, kind, {})) for kind in kinds)

    def _with(self, choice: Choice | None, index: int = 0) -> float:
        """Measure the model with one layer alone, by a choice or as it is."""
        index = choice.layer if choice is not None else index
        kept = None if choice is None else (choice.sublayer, *sorted(choice.kept.items()))
        key = self._config.layers[index], self._windows[index], kept
        if key not in self._found:
            config = self._config if choice is None else chosen(self._config, [choice])
            layers = [*self._bare[:index], config.layers[index], *self._bare[index + 1 :]]
            self._found[key] = self._measure(config.with_layers(layers))
        return self._found[key]


def parameters(config: ModelConfig) -> float:
    """Count all parameters; a token sees all of them, since no family has experts."""
    return config.parameters()


def operations(length: int, tokens: int = 1) -> Measure:
    """Count those of so many tokens that see `length` positions: one that is decoded, or a whole text."""
    return lambda config: tokens * token_operations(config, length, head=True)


def weight_bytes(item: float | None = None) -> Measure:
    """Count the bytes of weights; `item`: of a number, None for those of the type that the config names."""
    return lambda config: config.parameters() * (item or card_of(config).item_bytes(config))


def cache_bytes(batch: int, length: int, item: float | None = None) -> Measure:
    """Count the bytes of keys and values of so many texts; `item` as above.

    Raises:
        ValueError: what the model caches is not known.
    """

    def measure(config: ModelConfig) -> float:
        card = card_of(config)
        found, own = card.cache_bytes(config, length), card.item_bytes(config)
        if found is None:
            raise ValueError("what this model caches is not known")
        return batch * (found // own) * (item or own)

    return measure


def memory(batch: int, length: int, item: float | None = None) -> Measure:
    """Count the bytes of weights, and of keys and values of so many texts."""
    weights, cache = weight_bytes(item), cache_bytes(batch, length, item)
    return lambda config: weights(config) + cache(config)
