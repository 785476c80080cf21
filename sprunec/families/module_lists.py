"""The blocks of a model: what is traced, sharded and computed again one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the members of the outermost module lists."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            yield from ((f"{name}.{child}", block) for child, block in module.named_children())
