"""Running a library's code where it is not made for: on the meta device, without values, and all in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Unread(TorchDispatchMode):
    """Says "no" and 0 where a model asks for a value that a tensor on the meta device does not have.

    What is asked before the blocks is whether their mask could be left out, and whether their positions start again.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


@contextmanager
def values_unread() -> Iterator[None]:
    """Let code run meanwhile that asks tensors on the meta device for their values; no gradients are kept."""
    with torch.no_grad(), autocast_anywhere(), _Unread():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def autocast_anywhere() -> Iterator[None]:
    """Let code switch autocasting off meanwhile on its tensors' device, which torch refuses of the meta device."""
    autocast: Any = torch.autocast

    def unless_meta(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    module: Any = torch
    module.autocast = unless_meta
    try:
        yield
    finally:
        module.autocast = autocast


class InFloat64(TorchFunctionMode):
    """Computes in float64 what code casts to float32, as in norms and rotary positions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return func(*args, **kwargs)


def _doubled(leaf: Any) -> Any:
    return torch.float64 if leaf is torch.float32 else leaf
