"""How units are scored: the higher, the more worth keeping. `comparable` says how targets take scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.losses import language_model_loss
from sprunec.masks.calibration import BlockStatistics
from sprunec.masks.granularity import by_kind
from sprunec.masks.least_squares import removal_errors
from sprunec.rewrite.gating import Gates
from sprunec.rewrite.ops.groups import Groups
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
    """What a criterion is given that needs the loss's gradients, with the model in memory; it has all of `Weights`.

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


def random(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Draw scores, to compare with."""
    noise = torch.Generator().manual_seed(given.seed)
    return {key: torch.rand(size, generator=noise) for key, size in given.sizes.items()}


def magnitude(given: Weights | Calibration) -> dict[Key, Tensor]:
    """Score by the root mean square of all weights that a unit would take with it (Han et al. 2015, by structure)."""
    by_index, weights, found = {block.index: block for block in given.blocks}, given.weights, dict[Key, Tensor]()
    for index, unit in given.sizes:
        block, energies = by_index[index], list[Tensor]()
        own, axes, site = block.tensors(), block.forward.groups, block.sites.get(unit)
        if site is not None:
            held = [(name, dim, group) for group in site.groups["forward"] for name, dim in axes.holding(group)]
            for name, dim, group in held:
                if isinstance(own[name], nn.Parameter):
                    square, units = _square(block, weights, name), (site.around.get("forward"), group)
                    energies += _energies(axes, square, dim, axes.tensors[name][dim], units)
        else:
            names = [name for r in block.forward.residuals if unit in ("block", r.kind) for name in r.tensors]
            energies = [_square(block, weights, name).mean() for name in names if isinstance(own[name], nn.Parameter)]
        found[(index, unit)] = torch.stack(energies).mean(0).sqrt().reshape(-1).cpu()
    return found


def _square(block: TracedBlock, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[f"{block.path}.{name}"].detach().float().square()


def _energies(
    axes: Groups, square: Tensor, dim: int, factors: tuple[int, ...], units: tuple[int | None, int]
) -> Iterator[Tensor]:
    """Give the means (units,) over slices along the groups that number units: the one around them, and their own.

    A dim that is a sum has slices in several of its terms.
    """
    square = square.unflatten(dim, [axes.sizes[each] for each in factors])
    for place, each in enumerate(factors):
        if each in axes.sums and units[1] in axes.inside([each]):
            terms = axes.sums[each]
            for term, part in zip(terms, square.split([axes.width(term) for term in terms], dim + place), strict=True):
                if units[1] in axes.inside(term):
                    whole = part.flatten(dim, dim + len(factors) - 1)
                    yield from _energies(axes, whole, dim, (*factors[:place], *term, *factors[place + 1 :]), units)
            return
    own = [dim + factors.index(group) for group in units if group in factors]
    others = [each for each in range(square.dim()) if each not in own]
    yield (square.mean(others) if others else square).flatten()


def taylor(given: Calibration) -> dict[Key, Tensor]:
    """Score by the loss's first-order change when a unit is closed (Molchanov et al. 2017): mean |dL/dz| over batches.

    The model is left in eval mode, its gates open.
    """
    given.model.eval().requires_grad_(False)
    device = given.place.device
    exact = given.place.exact  # in fp16, small gradients would be lost without a loss scale
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
    given.model.requires_grad_(True)
    return scores


def activation(given: BlockStatistics) -> dict[Key, Tensor]:
    """Score by the energy of what a unit adds (Wanda, Sun et al. 2024, by structure), as a share of its stream's.

    Of a unit inside a sublayer: the mean square of each input feature of the projection times that of its weights.
    """

    def energies(squares: Tensor, weight: Tensor, features: Tensor) -> Tensor:
        energy: Tensor = squares * weight.float().square().mean(0)
        return energy[features.to(energy.device)].sum(1)

    return _by_projection(given, energies)


def reconstruction(given: BlockStatistics) -> dict[Key, Tensor]:
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


def _by_projection(given: BlockStatistics, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[Key, Tensor]:
    """Score units inside sublayers by the projections that they go into, whole ones by their output."""
    found: dict[Key, Tensor] = {}
    shares = {kind: energy / max(given.streams[kind], 1e-30) for kind, energy in given.branches.items()}
    for unit in given.sizes:
        whole = [share for kind, share in shares.items() if unit in ("block", kind)]
        if whole:
            found[(given.block.index, unit)] = torch.tensor([sum(whole)])
            continue
        # A unit is some features of a projection's input, all those whose place in (outer, units, inner) has its number
        # in the middle: of heads x dim_head a head is one run, a dim one feature in every head. What goes into several
        # projections counts in each; the product of q and k is none, for it sums over no weight.
        parts = []
        for projection, weight, statistic in given.inputs:
            if (units := projection.units(unit)) is not None:
                features = torch.arange(math.prod(units)).view(units).movedim(1, 0).flatten(1)  # (units, outer x inner)
                parts.append(score(statistic, weight, features))
        found[(given.block.index, unit)] = torch.stack(parts).sum(0).cpu() / max(given.streams[INSIDE[unit]], 1e-30)
    return found
