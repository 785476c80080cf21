"""The criteria by which units are scored, and what they may look at; the arithmetic is in `masks/scores.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.plan.declared import Criterion

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


def _by(function: str) -> Callable[[Any], dict[Key, Tensor]]:
    """Name a function of `masks/scores.py`, which is imported, and torch with it, when something is scored."""

    def score(subject: Any) -> dict[Key, Tensor]:
        from sprunec.masks import scores

        found: dict[Key, Tensor] = getattr(scores, function)(subject)
        return found

    return score


RANDOM = Criterion("random", _by("random"), calibrates=False)
MAGNITUDE = Criterion("magnitude", _by("magnitude"), calibrates=False)
TAYLOR = Criterion("taylor", _by("taylor"))
ACTIVATION = Criterion("activation", _by("activation"))
RECONSTRUCTION = Criterion("reconstruction", _by("reconstruction"))
