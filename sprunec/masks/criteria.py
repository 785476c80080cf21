"""Cheap scores of units: the higher, the more worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.masks.units import Key
from sprunec.rewrite.gating import Gates
from sprunec.rewrite.trace import TracedBlock

Loss = Callable[[nn.Module, Batch], Tensor]


def random(sizes: Mapping[Key, int], seed: int) -> dict[Key, Tensor]:
    """A draw, to compare with."""
    noise = torch.Generator().manual_seed(seed)
    return {key: torch.rand(size, generator=noise) for key, size in sizes.items()}


def magnitude(blocks: Sequence[TracedBlock], sizes: Mapping[Key, int]) -> dict[Key, Tensor]:
    """The root mean square of all weights that a unit would take with it (Han et al. 2015, by structure)."""
    by_index = {block.index: block for block in blocks}
    return {(index, unit): _magnitude(by_index[index], unit) for index, unit in sizes}


def taylor(model: nn.Module, gates: Gates, batches: Iterable[Batch], loss: Loss, place: Place) -> dict[Key, Tensor]:
    """The first-order change of the loss when a unit is closed (Molchanov et al. 2017): mean of |dL/dz| over batches.

    Args:
        model: its traced blocks replaced by gated ones; left in eval mode, gates open.
    """
    model.eval()
    exact = Place(place.device, torch.float32)  # in fp16, small gradients would be lost without a loss scale
    leaves = {key: torch.ones(size, device=place.device, requires_grad=True) for key, size in gates.sizes.items()}
    for key, leaf in leaves.items():
        gates.set(*key, leaf)
    scores = {key: torch.zeros(size) for key, size in gates.sizes.items()}
    for count, batch in enumerate(batches, start=1):
        batch = batch.to(place.device)
        with exact.precision():
            mean = loss(model, batch) / batch.target_count
        for (key, _), gradient in zip(leaves.items(), torch.autograd.grad(mean, list(leaves.values())), strict=True):
            scores[key] += (gradient.abs().float().cpu() - scores[key]) / count
    return scores


def _magnitude(block: TracedBlock, unit: str) -> Tensor:
    tensors = block.tensors()
    if unit in block.sites:
        axes, site = block.forward.groups, block.sites[unit]
        energies = [
            _energy(tensors[name], axes.tensors[name][dim], dim, group, axes.sizes)
            for group in site.groups["forward"]
            for name, dim in axes.holding(group)
            if isinstance(tensors[name], nn.Parameter)
        ]
        return torch.stack(energies).mean(0).sqrt()
    names = [name for r in block.forward.residuals if unit in ("block", r.kind) for name in r.tensors]
    return torch.stack([tensors[name].detach().float().square().mean().cpu() for name in names]).mean().sqrt()[None]


def _energy(tensor: Tensor, dim_groups: tuple[int, ...], dim: int, group: int, sizes: Mapping[int, int]) -> Tensor:
    """(units,): the mean square of the slices of one tensor along one factor of one dim."""
    split: Tensor = tensor.detach().float().square().unflatten(dim, [sizes[g] for g in dim_groups])
    place = dim + dim_groups.index(group)
    return split.mean([d for d in range(split.dim()) if d != place]).cpu()
