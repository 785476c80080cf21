"""Empty models get their weights from files: all of them, or of each tensor the rows that this rank has a shard of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.safetensors_file import Stored
from sprunec.families.model_directory import check_shapes, fill


def fill_whole(model: nn.Module, weights: Tensors, dtype: torch.dtype | None) -> None:
    """Read all of a model that is on the meta device into the CPU's memory.

    Args:
        dtype: what it is kept in; None: what it is stored in.
    """
    fill(model, {name: weights.copy(name).to(dtype or weights.dtype(name)) for name in weights}, home(weights))


def fill_shards(model: nn.Module, weights: Tensors, dtype: torch.dtype | None, device: torch.device | str) -> None:
    """Read this rank's shards of a model that was sharded on the meta device; of files nothing else is read.

    Args:
        dtype: as for `fill_whole`.
        device: where the shards are kept.
    """
    empty: dict[str, Tensor] = model.state_dict()
    check_shapes({name: tuple(tensor.shape) for name, tensor in empty.items()}, weights.shapes(), home(weights))
    state = dict[str, Tensor]()
    for name, tensor in empty.items():
        kept = dtype or weights.dtype(name)
        if not isinstance(tensor, DTensor):
            state[name] = weights.copy(name).to(device, kept)
            continue
        own = weights.rows(name, rows_of_shard(tensor)).to(device, kept)
        mesh, places = tensor.device_mesh, tensor.placements
        state[name] = DTensor.from_local(own, mesh, places, run_check=False, shape=tensor.shape, stride=tensor.stride())
    model.load_state_dict(state, strict=True, assign=True)


def rows_of_shard(tensor: DTensor) -> range:
    """Tell which rows of a tensor this rank has: equal shares in order, the last ones smaller or empty."""
    mesh, rows = tensor.device_mesh, tensor.shape[0]
    share = -(-rows // mesh.size())
    first = min(rows, share * mesh.get_local_rank())
    return range(first, first + tensor.to_local().shape[0])


def home(weights: Tensors) -> Path | str:
    """Name the file that the first of some tensors is in."""
    place = next(iter(weights.places.values()), None)
    return place.file if isinstance(place, Stored) else "the checkpoint"
