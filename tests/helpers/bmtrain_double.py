"""A test double of CUDA and NCCL for one rank, under which BMTrain's own Python code runs on the CPU.

CUDA's calls do nothing, what is asked for "cuda" comes on the CPU, and a collective of one rank is a copy. Everything
else, parameters, blocks, ZeRO's contexts, optimizers and loss scale, is BMTrain's, unchanged.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # it maps functions of torch when first used, which would be the double's

COMMUNICATOR = object()
STORAGES = ("Float", "Double", "Half", "BFloat16", "Char", "Byte", "Short", "Int")


class Idle:
    """A stream, or an event."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def put_on(patch: pytest.MonkeyPatch) -> None:
    """Replace CUDA and NCCL until `patch` is undone, BMTrain's state with them."""
    _cuda(patch)
    import bmtrain
    from bmtrain import nccl
    from bmtrain.distributed import ops

    patch.setitem(bmtrain.global_var.config, "initialized", False)
    for name, stand_in in _collectives().items():
        patch.setattr(nccl, name, stand_in)
        for alias in (f"nccl{name[0].upper()}{name[1:]}", name):
            if hasattr(ops, alias):
                patch.setattr(ops, alias, stand_in)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    patch.setenv("MASTER_ADDR", "127.0.0.1")


def _cuda(patch: pytest.MonkeyPatch) -> None:
    nothing = lambda *_, **__: None  # noqa: E731
    for name in ("set_device", "synchronize", "set_rng_state"):
        patch.setattr(torch.cuda, name, nothing)
    patch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("Stream", "Event", "current_stream"):
        patch.setattr(torch.cuda, name, Idle)
    patch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    patch.setattr(torch.cuda, "FloatTensor", torch.FloatTensor)
    for kind in STORAGES:
        patch.setattr(torch.cuda, f"{kind}Storage", getattr(torch, f"{kind}Storage"), raising=False)
    for name in ("tensor", "zeros", "empty"):
        patch.setattr(torch, name, _on_the_cpu(getattr(torch, name)))
    patch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    patch.setattr(torch.Tensor, "record_stream", nothing)
    patch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    patch.setattr(torch.random, "fork_rng", lambda *_, **__: contextlib.nullcontext())


def _on_the_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*arguments: Any, **options: Any) -> torch.Tensor:
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = "cpu"
        options.pop("pin_memory", None)
        return make(*arguments, **options)

    return made


def _collectives() -> dict[str, Callable[..., Any]]:
    def copy(source: Any, target: Any, *_: Any) -> None:
        if source.data_ptr() != target.data_ptr():
            target.copy_(source)

    return {
        "getUniqueId": lambda: bytes(128),
        "commInitRank": lambda *_: COMMUNICATOR,
        "commCount": lambda _: 1,
        "commRank": lambda _: 0,
        "groupStart": lambda: None,
        "groupEnd": lambda: None,
        **dict.fromkeys(("allGather", "allReduce", "reduceScatter", "broadcast"), copy),
    }
