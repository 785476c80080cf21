"""Which blocks of a model have one code: they are traced once."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from sprunec.families.block_calls import CalledBlock


def block_kinds(called: Sequence[CalledBlock]) -> dict[str, Hashable]:
    """Tell by path what decides a block's code: its modules with their constants and shapes, and how it is called.

    A number that is each block's own place among the others, as its layer in the cache is, is left out where the
    blocks are also of one kind without it; whether it is computed with, only a second trace can tell.
    """
    places = [_constants(block.module) for block in called]
    numbered = {
        name
        for name in (places[0] if places else ())
        if all(constants.get(name) == repr(index) for index, constants in enumerate(places))
    }
    return {
        block.path: (
            tuple((name, value) for name, value in constants.items() if name not in numbered),
            tuple(_shapes(dict(block.module.named_parameters()) | dict(block.module.named_buffers()))),
            tuple((method, call.constants, tuple(_shapes(call.inputs))) for method, call in block.calls.items()),
        )
        for block, constants in zip(called, places, strict=True)
    }


def _shapes(inputs: Any) -> list[Hashable]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.items()]


def _constants(block: nn.Module) -> dict[str, Hashable]:
    """List the classes of a block's modules, and their attributes that are neither modules nor tensors."""
    found: dict[str, Hashable] = {}
    for path, module in block.named_modules():
        found[path] = f"{type(module).__module__}.{type(module).__qualname__}"
        for name, value in vars(module).items():
            if not name.startswith("_") and not isinstance(value, Tensor):
                plain = isinstance(value, int | float | str | bool | None | tuple)
                found[f"{path}.{name}"] = repr(value) if plain else _code(value)
    return found


def _code(value: Any) -> Hashable:
    """Tell objects apart; partial functions by what they call, and methods by their function."""
    if isinstance(value, functools.partial):
        return (_code(value.func), repr(value.args), repr(value.keywords))
    return id(getattr(value, "__func__", value))
