"""One model over several processes: every rank has all of it (DDP), or a shard of every tensor (FSDP2).

Gradients are added over ranks, not averaged: each rank's loss is already divided by the targets of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sprunec.checkpoint.writer import Output
from sprunec.engines.device import Place
from sprunec.errors import PassError
from sprunec.families.module_lists import blocks


def replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Keep all of the model on every rank; its buffers, gates that are set alike and indices, need no sending."""
    names = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    devices = [device] if device.type == "cuda" else None
    copies = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    copies.register_comm_hook(None, lambda _, bucket: _add(bucket.buffer()))
    return copies


def _add(gradients: Tensor) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(gradients, async_op=True)
    added: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return added


def shard(model: nn.Module, place: Place, world_size: int, *, offload: bool) -> None:
    """Keep a shard of every tensor on each rank, in place; a block's are whole only while it is at work (ZeRO-3).

    A model on the meta device is divided up alike, and gets its shards later.

    In half precision a block's weights are gathered as such: casts of fp32 ones would be kept for the backward pass.
    What stands outside the blocks stays in fp32, and so does the sum that runs through them; gradients add up in fp32.

    Args:
        offload: keep shards, gradients and moments in the memory of the CPU, where the optimizer then works.

    Raises:
        PassError: this torch cannot add gradients without averaging them.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise PassError('"sharding": "full" needs a newer torch, 2.9 or later; "none" does not')
    kind = place.device.type
    if not dist.is_initialized():  # one process that offloads
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(kind, (world_size,))
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for _, block in blocks(model):
        if any(True for _ in block.parameters()):
            half = place.dtype if place.dtype != torch.float32 and not exact_norms(block, kind) else None
            precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(block, mesh=mesh, offload_policy=policy, mp_policy=precision)
    # Its states come by a method of their own; the head behind them, which runs in parts, finds its weights still full.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
    register_fsdp_forward_method(model, "states")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def exact_norms(block: nn.Module, device: str) -> bool:
    """Tell whether torch's layer norm is in a block that works on the CPU: beside float32 it takes no other weights."""
    called = {node.target for node in block.graph.nodes} if isinstance(block, fx.GraphModule) else set()
    modules = any(isinstance(module, nn.LayerNorm) for module in block.modules())
    return device == "cpu" and (modules or not called.isdisjoint({F.layer_norm, torch.layer_norm}))


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shard a whole tensor that all ranks have as `model` is sharded, which is of the same shape."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor) or tensor.shape != model.shape:
        return tensor
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


class Gathered(Mapping[str, Tensor]):
    """A sharded state by name: whole, on the CPU, only while one is asked for; all ranks ask for all, in this order."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> Tensor:
        tensor: Any = self._state[name].detach()
        if isinstance(tensor, DTensor):  # what is offloaded is gathered on the device
            tensor = tensor.to(tensor.device_mesh.device_type)
            tensor = tensor.full_tensor()
        return tensor.cpu()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def outputs(self) -> dict[str, Output]:
        """Make outputs that are gathered when they are written."""
        found = {}
        for name, tensor in self._state.items():
            found[name] = Output(tuple(tensor.shape), tensor.dtype, partial(self._parts, name))
        return found

    def _parts(self, name: str) -> Iterator[Tensor]:
        yield self[name]


def total_norm(gradients: Sequence[Tensor]) -> float:
    """Compute the norm of shards and whole tensors together, over all ranks."""
    groups = [[g for g in gradients if isinstance(g, DTensor) == sharded] for sharded in (True, False)]
    found = [nn.utils.get_total_norm(group) for group in groups if group]
    if not found:
        return 0.0
    norms = [(norm.full_tensor() if isinstance(norm, DTensor) else norm).cpu() for norm in found]
    return float(norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms)))
