"""Python source from graphs: a class per traced block, with its methods as torch.fx prints them."""

from __future__ import annotations

import keyword
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn

from sprunec.errors import TraceError


@dataclass(frozen=True)
class ClassSource:
    """A block's class as text, and the lines that must stand before it."""

    text: str
    imports: frozenset[str]


def block_source(module: fx.GraphModule, name: str) -> ClassSource:
    """A plain nn.Module class `name` with the module's tensors, by the same names, and one method per graph."""
    imports: set[str] = set()
    bodies = []
    for method, graph in module.graphs.items():  # type: ignore[union-attr,operator]
        code = graph.python_code("self")
        imports |= {_import(used, value) for used, value in code.globals.items() if used in code.src}
        lines = [line.rstrip() for line in code.src.strip().splitlines()]
        lines[0] = lines[0].replace("def forward(", f"def {method}(", 1)
        bodies.append("\n".join(f"    {line}" if line else "" for line in lines))
    head = f"class {name}(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()\n"
    body = "".join(f"        {line}\n" for line in _declarations(module))
    return ClassSource(head + body + "\n" + "\n\n".join(bodies), frozenset(imports - {""}))


def _declarations(module: nn.Module) -> list[str]:
    """Lines that make an empty tree of the same tensors and leaf modules."""
    state = set(module.state_dict(keep_vars=True))
    lines = [f'place(self, "{name}", {_empty(p)})' for name, p in module.named_parameters()]
    for name, buffer in module.named_buffers():
        if name in state:
            lines.append(f'place(self, "{name}", {_empty(buffer)[len("nn.Parameter(") : -1]})')
        else:
            lines.append(f'place(self, "{name}", torch.tensor({buffer.tolist()}), persistent=False)')
    for name, child in module.named_modules():
        if type(child) is not nn.Module and name and not isinstance(child, fx.GraphModule):
            lines.append(f'place(self, "{name}", nn.{child!r})')
    return lines


def _empty(tensor: Tensor) -> str:
    return f"nn.Parameter(torch.empty({tuple(tensor.shape)}))"


def _import(name: str, value: Any) -> str:
    """How a global that generated code uses comes to be."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    owner, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if owner is None or not own.isidentifier() or keyword.iskeyword(own):
        return f"{name} = float({str(value)!r})" if isinstance(value, float) else ""
    if not owner.split(".")[0] in ("torch", "math", "operator", "builtins", "_operator"):
        raise TraceError(f"a graph calls {owner}.{own}, which the generated model.py could not import")
    if owner == "builtins":
        return "" if name == own else f"{name} = type(None)" if value is type(None) else f"{name} = {own}"
    return f"from {owner} import {own}" + ("" if own == name else f" as {name}")
