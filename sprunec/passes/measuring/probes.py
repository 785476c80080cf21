"""Which models are timed to know what each choice takes, and what follows from their times; needs no torch.

A sublayer timed alone, again and again, has its weights in the processor's cache; in the model they come from memory,
token after token. So models are timed: the dense one, and for each choice one whose layers all have made it. What that
takes less, divided by the number of layers, is what the choice saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sprunec.errors import PassError
from sprunec.families.base_config import ModelConfig, unit_cost
from sprunec.families.cards import card_of
from sprunec.plan.search.choices import Choice, chosen
from sprunec.units import sublayers_of

ENOUGH_BYTES = 2**30  # of blocks: far more than any cache holds
LEAST_LAYERS = 4
DENSE, ALONE, MIXED = range(3)  # the first models
Kept = tuple[tuple[str, int], ...]  # how many units of each kind; none: absent


@dataclass(frozen=True)
class Probe:
    """A model to be timed; `layers` have another choice than in the dense one, about `sublayer`."""

    config: ModelConfig
    layers: tuple[int, ...] = ()
    sublayer: str = ""
    kept: Kept = ()


@dataclass
class Probes:
    """Models to be timed: the dense one, one with a layer alone, one of all kinds of choices, and one for each choice.

    Args:
        item: bytes of a weight. A model of large blocks is timed by some of them.
    """

    config: ModelConfig
    choices: Sequence[Choice]
    item: float
    kinds: list[list[int]] = field(init=False)
    models: list[Probe] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = list(self._alike().values())
        shown = [index for kind in self.kinds for index in kind[: self._most(kind[0])]]
        self._attending = [index for index in sorted(shown) if self._kinds_of(index)[0] == "attention"]
        if len(self._attending) < 2:
            raise PassError("latencies are measured on models of two layers with attention, at least")
        self._shown, self._first = sorted(shown), self._attending[0]
        self._dense = self._with_layers(self._shown)
        mixed = chosen(self._dense, self._mixed())
        self.models = [Probe(self._dense), Probe(self._with_layers([self._first])), Probe(mixed), *self._changed()]

    def _alike(self) -> dict[Any, list[int]]:
        """Sort the layers that are there by shape, and by how far they see."""
        found: dict[Any, list[int]] = {}
        windows = card_of(self.config).windows(self.config)
        for index, (layer, window) in enumerate(zip(self.config.layers, windows, strict=True)):
            if layer.counts:
                found.setdefault((layer, window), []).append(index)
        return found

    def _most(self, index: int) -> int:
        size = self.item * unit_cost(self.config, index, "block") * len(self._alike())
        return max(LEAST_LAYERS, int(ENOUGH_BYTES / size))

    def _kinds_of(self, index: int) -> tuple[str, ...]:
        return sublayers_of(self.config.layers[index].counts)

    def _with_layers(self, there: Sequence[int]) -> ModelConfig:
        layers = enumerate(self.config.layers)
        return self.config.with_layers(
            layer if index in there else layer.resized(dict.fromkeys(layer.counts, 0)) for index, layer in layers
        )

    def _sizes(self, index: int, sublayer: str) -> list[Kept]:
        """List what a layer may have of a sublayer, but for all of it; that it is absent among these, asked or not."""
        wanted = (c for c in self.choices if (c.layer, c.sublayer) == (index, sublayer) and not c.is_dense(self.config))
        return list(dict.fromkeys([*(tuple(sorted(choice.kept.items())) for choice in wanted), ()]))

    def _mixed(self) -> Iterator[Choice]:
        """Take a choice of each sublayer in turn, of those that leave something."""
        for kind in self.kinds:
            for sublayer in self._kinds_of(kind[0]):
                sizes = [kept for kept in self._sizes(kind[0], sublayer) if kept]
                for place, index in enumerate(index for index in kind if index in self._shown):
                    if sizes:
                        yield Choice(index, sublayer, dict(sizes[place % len(sizes)]))

    def _changed(self) -> Iterator[Probe]:
        for kind in self.kinds:
            for sublayer in self._kinds_of(kind[0]):
                there = [index for index in kind if index in self._shown]
                for kept in self._sizes(kind[0], sublayer):
                    changed = there
                    if sublayer == "attention" and not kept and {*self._attending} <= {*there}:
                        changed = there[1:]  # a model without any attention is none
                    config = chosen(self._dense, [Choice(index, sublayer, dict(kept)) for index in changed])
                    yield Probe(config, tuple(changed), sublayer, kept)

    def entries(self, seconds: Sequence[float]) -> tuple[float, list[dict[str, Any]]]:
        """Say what is taken whatever is chosen, and what each sublayer takes with so many units, by kinds of layers.

        What a layer takes besides its sublayers, as the call, is half each one's: the sum is then the dense model's.

        Args:
            seconds: what each model takes.
        """
        dense, alone = seconds[DENSE], seconds[ALONE]
        saved = {
            (self._kind(probe.layers[0]), probe.sublayer, probe.kept): (dense - time) / len(probe.layers)
            for probe, time in zip(self.models, seconds, strict=True)
            if probe.layers
        }
        whole = {key[:2]: share for key, share in saved.items() if not key[2]}
        parts = {i: [whole[self._kind(i), sublayer] for sublayer in self._kinds_of(i)] for i in self._shown}
        others = [index for index in self._shown if index != self._first]
        both = [index for index in others if len(parts[index]) == 2]
        rest = dense - alone - sum(sum(parts[index]) for index in others)
        half = rest / len(both) / 2 if both else 0.0
        found = []
        for (number, sublayer), share in whole.items():
            index = self.kinds[number][0]
            full = share + half * (len(self._kinds_of(index)) == 2)
            counts = next(
                c.kept for c in self.choices if (c.layer, c.sublayer) == (index, sublayer) and c.is_dense(self.config)
            )
            sizes = {
                kept: full - less for (*which, kept), less in saved.items() if which == [number, sublayer] and kept
            }
            for kept, time in {tuple(sorted(counts.items())): full, **sizes}.items():
                found.append({"sublayer": sublayer, "layers": self.kinds[number], "kept": dict(kept), "seconds": time})
        base = dense - sum(sum(each) + 2 * half * (len(each) == 2) for each in parts.values())
        return base, found

    def _kind(self, index: int) -> int:
        return next(number for number, kind in enumerate(self.kinds) if index in kind)
