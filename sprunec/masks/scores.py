"""How units are scored: the higher, the more worth keeping. `comparable` says how targets take scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.loop import language_model_loss
from sprunec.masks.calibration import Moments, calibrate
from sprunec.masks.granularity import by_kind
from sprunec.masks.least_squares import removal_errors
from sprunec.rewrite.gating import Gates
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import INSIDE, SIZE_TARGETS, Key


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
        loss: (model, batch) -> the loss, summed over the batch's targets.
    """

    model: nn.Module
    gates: Gates
    blocks: Sequence[TracedBlock]
    batches: Iterable[Batch]
    place: Place
    seed: int
    loss = staticmethod(language_model_loss)

    @property
    def sizes(self) -> Mapping[Key, int]:
        return self.gates.sizes

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def moments(self) -> Moments:
        return calibrate(self.model, self.blocks, self.batches, self.place)


def random(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Draw scores, to compare with."""
    noise = torch.Generator().manual_seed(given.seed)
    return {key: torch.rand(size, generator=noise) for key, size in given.sizes.items()}


def magnitude(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Score by the root mean square of all weights that a unit would take with it (Han et al. 2015, by structure)."""
    by_index, weights, found = {block.index: block for block in given.blocks}, given.weights, dict[Key, Tensor]()
    for index, unit in given.sizes:
        block, parts = by_index[index], list[Any]()
        if unit in block.sites:
            groups = block.sites[unit].groups["forward"]
            parts = [(name, dim, group) for group in groups for name, dim in block.forward.groups.holding(group)]
        else:
            parts = [(name,) for r in block.forward.residuals if unit in ("block", r.kind) for name in r.tensors]
        own = block.tensors()
        energies = [_energy(block, weights, *part) for part in parts if isinstance(own[part[0]], nn.Parameter)]
        found[(index, unit)] = torch.stack(energies).mean(0).sqrt().reshape(-1)
    return found


def _energy(
    block: TracedBlock, weights: Mapping[str, Tensor], name: str, dim: int = 0, group: int | None = None
) -> Tensor:
    """Give the mean square of a tensor, or (units,) of its slices along a group that one of its dims is made of."""
    square: Tensor = weights[f"{block.path}.{name}"].detach().float().square()
    if group is None:
        return square.mean().cpu()
    factors = block.forward.groups.tensors[name][dim]
    square = square.unflatten(dim, [block.forward.groups.sizes[each] for each in factors])
    return square.mean([d for d in range(square.dim()) if d != dim + factors.index(group)]).cpu()


def taylor(given: Calibration) -> dict[Key, Tensor]:
    """Score by the loss's first-order change when a unit is closed (Molchanov et al. 2017): mean |dL/dz| over batches.

    The model is left in eval mode, its gates open.
    """
    given.model.eval()
    device = given.place.device
    exact = Place(device, torch.float32)  # in fp16, small gradients would be lost without a loss scale
    leaves = {key: torch.ones(size, device=device, requires_grad=True) for key, size in given.sizes.items()}
    for key, leaf in leaves.items():
        given.gates.set(*key, leaf)
    scores = {key: torch.zeros(size) for key, size in given.sizes.items()}
    for count, batch in enumerate(given.batches, start=1):
        batch = batch.to(device)
        with exact.precision():
            mean = given.loss(given.model, batch) / batch.target_count
        for (key, _), gradient in zip(leaves.items(), torch.autograd.grad(mean, list(leaves.values())), strict=True):
            scores[key] += (gradient.abs().float().cpu() - scores[key]) / count
    return scores


def activation(given: Calibration) -> dict[Key, Tensor]:
    """Score by the energy of what a unit adds (Wanda, Sun et al. 2024, by structure), as a share of its stream's.

    Of a unit inside a sublayer: the mean square of each input feature of the projection times that of its weights.
    """

    def energies(moment: Tensor, weight: Tensor, features: Tensor) -> Tensor:
        energy: Tensor = moment.diagonal() * weight.float().square().mean(0)
        return energy[features.to(energy.device)].sum(1)

    return _by_projection(given, energies)


def reconstruction(given: Calibration) -> dict[Key, Tensor]:
    """Score by the mean square error of the output without the unit, the others refitted, as a share of the stream.

    See `least_squares.removal_errors`; a whole sublayer leaves nothing to refit, and counts its energy.
    """
    return _by_projection(given, lambda moment, weight, own: removal_errors(moment, weight, own) / len(weight))


def comparable(scores: Mapping[Key, Tensor], target: Mapping[str, Any]) -> dict[Key, Tensor]:
    """Make scores what a target takes: a size, which all kinds of units share, takes their ranks."""
    return dict(scores) if target.keys().isdisjoint(SIZE_TARGETS) else ranks(scores)


def ranks(scores: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Rank each unit among all of its kind, in (0, 1], so that every kind gives the same share of its units.

    How much a head is worth says little of how much a dim is: errors of both in one order keep all heads and few dims.
    """

    def ranked(values: Tensor) -> Tensor:
        order = values.argsort(stable=True)
        return torch.empty(len(order)).index_copy_(0, order, torch.arange(1.0, len(order) + 1) / len(order))

    return by_kind(scores, ranked)


def _by_projection(given: Calibration, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[Key, Tensor]:
    """Score units inside sublayers by the projections that they go into, whole ones by their output."""
    found: dict[Key, Tensor] = {}
    moments = given.moments()
    shares = {key: energy / max(moments.streams[key], 1e-30) for key, energy in moments.branches.items()}
    for index, unit in given.sizes:
        whole = [share for (block, kind), share in shares.items() if block == index and unit in ("block", kind)]
        if whole:
            found[(index, unit)] = torch.tensor([sum(whole)])
            continue
        # A unit is some features of a projection's input, all those whose place in (outer, units, inner) has its number
        # in the middle: of heads x dim_head a head is one run, a dim one feature in every head. What goes into several
        # projections counts in each; the product of q and k is none, for it sums over no weight.
        parts = []
        for projection, moment in moments.inputs.values():
            units = projection.units(unit) if projection.block.index == index else None
            if units is not None:
                features = torch.arange(math.prod(units)).view(units).movedim(1, 0).flatten(1)  # (units, outer x inner)
                parts.append(score(moment, projection.weight, features))
        found[(index, unit)] = torch.stack(parts).sum(0).cpu() / moments.streams[(index, INSIDE[unit])]
    return found
