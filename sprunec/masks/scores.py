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
        return calibrate(self.model, self.blocks, self.batches, self.place)


def random(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Draw scores, to compare with."""
    noise = torch.Generator().manual_seed(given.seed)
    return {key: torch.rand(size, generator=noise) for key, size in given.sizes.items()}


def magnitude(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Score by the root mean square of all weights that a unit would take with it (Han et al. 2015, by structure)."""
    by_index, weights = {block.index: block for block in given.blocks}, given.weights
    return {(index, unit): _magnitude(by_index[index], unit, weights) for index, unit in given.sizes}


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
    return _by_projection(
        given, lambda moment, weight, features: removal_errors(moment, weight, features) / len(weight)
    )


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
    for index, unit in given.sizes:
        kinds = [kind for block, kind in moments.branches if block == index and unit in ("block", kind)]
        if kinds:
            found[(index, unit)] = torch.tensor([sum(moments.share(index, kind) for kind in kinds)])
            continue
        # A unit is some features of a projection's input, all those whose place in (outer, units, inner) has its number
        # in the middle: of heads x dim_head a head is one run, a dim one feature in every head. What goes into several
        # projections counts in each; the product of q and k is none, for it sums over no weight.
        stream = moments.streams[(index, INSIDE[unit])]
        parts = [score(moment, p.weight, features(units)) for p, moment, units in moments.of_unit(index, unit)]
        found[(index, unit)] = torch.stack(parts).sum(0).cpu() / stream
    return found


def features(units: tuple[int, int, int]) -> Tensor:
    """(units, outer x inner): where each unit lies in a dim that is (outer, units, inner)."""
    return torch.arange(math.prod(units)).view(units).movedim(1, 0).flatten(1)


def _magnitude(block: TracedBlock, unit: str, weights: Mapping[str, Tensor]) -> Tensor:
    own = block.tensors()
    if unit in block.sites:
        axes, site = block.forward.groups, block.sites[unit]
        energies = [
            _energy(weights[f"{block.path}.{name}"], axes.tensors[name][dim], dim, group, axes.sizes)
            for group in site.groups["forward"]
            for name, dim in axes.holding(group)
            if isinstance(own[name], nn.Parameter)
        ]
        return torch.stack(energies).mean(0).sqrt()
    names = [name for r in block.forward.residuals if unit in ("block", r.kind) for name in r.tensors]
    names = [name for name in names if isinstance(own[name], nn.Parameter)]
    whole = [weights[f"{block.path}.{name}"].detach().float().square().mean().cpu() for name in names]
    return torch.stack(whole).mean().sqrt()[None]


def _energy(tensor: Tensor, dim_groups: tuple[int, ...], dim: int, group: int, sizes: Mapping[int, int]) -> Tensor:
    """(units,): the mean square of the slices of one tensor along one factor of one dim."""
    split: Tensor = tensor.detach().float().square().unflatten(dim, [sizes[g] for g in dim_groups])
    own = dim + dim_groups.index(group)
    return split.mean([d for d in range(split.dim()) if d != own]).cpu()
