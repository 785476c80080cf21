"""The criteria by which units are scored, and what they may look at; the arithmetic is in `masks/scores.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sprunec.plan.criterion_table import Criterion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sprunec.data.batches import Batch
    from sprunec.engines.device import Place
    from sprunec.masks.calibration import Moments
    from sprunec.rewrite.gating import Gates
    from sprunec.rewrite.trace import TracedBlock
    from sprunec.units import Key


@dataclass(frozen=True)
class Weights:
    """What a criterion that needs no data is given; no model need be in memory.

    Attributes:
        blocks: what was traced, of weights or of their shapes alone.
        sizes: how many units there are.
        weights: the model's, by name; each is asked for when it is needed, and not kept.
    """

    blocks: Sequence[TracedBlock]
    sizes: Mapping[Key, int]
    weights: Mapping[str, Tensor]
    seed: int


@dataclass(frozen=True)
class Calibration:
    """What a criterion is given that runs batches through the model; it has all that `Weights` has.

    Attributes:
        model: its traced blocks replaced by gated ones, all gates open.
        loss: of a batch, summed over its targets.
    """

    model: nn.Module
    gates: Gates
    blocks: Sequence[TracedBlock]
    batches: Iterable[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    place: Place
    seed: int

    @property
    def sizes(self) -> Mapping[Key, int]:
        return self.gates.sizes

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def moments(self) -> Moments:
        from sprunec.masks.calibration import calibrate

        return calibrate(self.model, self.blocks, self.batches, self.place)


def _score(function: str, given: Weights | Calibration) -> dict[Key, Tensor]:
    """Import the arithmetic, and torch with it, when something is scored."""
    from sprunec.masks import scores

    found: dict[Key, Tensor] = getattr(scores, function)(given)
    return found


RANDOM = Criterion("random", partial(_score, "random"), calibrates=False)
MAGNITUDE = Criterion("magnitude", partial(_score, "magnitude"), calibrates=False)
TAYLOR = Criterion("taylor", partial(_score, "taylor"))
ACTIVATION = Criterion("activation", partial(_score, "activation"))
RECONSTRUCTION = Criterion("reconstruction", partial(_score, "reconstruction"))
