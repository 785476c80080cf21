"""Write `model.py` of an emitted model: the family's frame as it stands here, the blocks from their rewritten graphs.

A block becomes a class, with its methods as torch.fx prints them; `model_source.txt` has what stands around all that.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

from torch import fx, nn

from sprunec.durable import write_new
from sprunec.errors import TraceError
from sprunec.families.base import Family, family_of
from sprunec.models.meta_models import empty_model, traced
from sprunec.rewrite.surgery import rewrite
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut

# A name used as a value: neither an attribute nor the left side of an assignment or a keyword.
VALUE = r"(?<![\w.])\w+\b(?! = )"


def write_model_py(
    directory: Path, origin: Any, kept: Cut, small: Any, blocks: Sequence[TracedBlock] | None = None
) -> None:
    """Cut the traced graphs of `origin` to what is `kept` of it, and print them.

    Args:
        origin, small: configs of the plan's input model and of the one that is left.
        blocks: the traced blocks of `origin`, where they are at hand or were changed.
    """
    family, shape = family_of(origin), empty_model(origin)
    blocks = blocks or traced(shape, origin)
    rewritten = rewrite(shape, blocks, kept)
    modules = [rewritten.get_submodule(block.path) for block in blocks]
    write_new(directory / "model.py", _model_source(family, modules, family.cache_shapes(small)))


def _model_source(family: Family, layers: Sequence[nn.Module], cache_shapes: Sequence[tuple[int, int] | None]) -> str:
    """Fill the template beside this file; layers whose classes would be equal share one."""
    names, imports, order = dict[str, str](), set[str](), []
    for index, module in enumerate(layers):
        source = block_source(module, "Block")
        imports |= source.imports
        names.setdefault(source.text, f"Layer{index}")
        order.append(names[source.text])
    classes = [text.replace("class Block(", f"class {name}(", 1) for text, name in names.items()]
    return Template(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")).substitute(
        model=family.frame_class,
        frame=_frame(family.frame, imports),
        blocks="\n\n\n".join(classes),
        layers=", ".join(order),
        cache_shapes=repr(list(cache_shapes)),
    )


def _frame(sources: Sequence[ModuleType], imports: set[str]) -> str:
    """Put the own text of the frame's modules below one block of imports, the generated code's among them."""
    bodies = []
    for source in sources:
        lines = inspect.getsource(source).split("from __future__ import annotations\n", 1)[1].splitlines()
        first = next(number for number, line in enumerate(lines) if line and not line.startswith(("import ", "from ")))
        imports |= {line for line in lines[:first] if line and not line.startswith("from .")}
        bodies.append("\n".join(lines[first:]))
    return "\n".join(sorted(imports)) + "\n\n" + "\n\n\n".join(bodies)


@dataclass(frozen=True)
class ClassSource:
    """A block's class as text, and the lines that must stand before it."""

    text: str
    imports: frozenset[str]


def block_source(module: nn.Module, name: str) -> ClassSource:
    """Write a plain nn.Module class `name` with the module's tensors, by their names, and one method per graph."""
    imports, bodies = set[str](), []
    graphs: dict[str, fx.Graph] = vars(module)["graphs"]
    for method, graph in graphs.items():
        lines = _method_lines(method, graph)
        text = "\n".join(lines)
        used = graph.python_code("self").globals.items()
        imports |= {_import(name, value) for name, value in used if re.search(rf"\b{name}\b", text)}
        bodies.append("\n".join(f"    {line}" for line in lines))
    head = f"class {name}(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()\n"
    body = "".join(f"        {line}\n" for line in _declarations(module))
    return ClassSource(head + body + "\n" + "\n\n".join(bodies), frozenset(imports - {""}))


def _method_lines(method: str, graph: fx.Graph) -> list[str]:
    """Print a graph as torch.fx does, with weights named where they are used and functions by their public names."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    arguments = [str(node.target) + (f"={node.args[0]!r}" if node.args else "") for node in placeholders]
    weights: dict[str, str] = {}
    lines = [f"def {method}({', '.join(['self', *arguments])}):"]
    for line in graph.python_code("self").src.strip().splitlines()[1:]:
        statement, _, freed = line.strip().partition(";  ")
        weight = re.fullmatch(r"(\w+) = (self(?:\.\w+)+)", statement)
        if weight:
            weights[weight[1]] = weight[2]
            continue
        statement = re.sub(VALUE, lambda word: weights.get(word[0], word[0]), statement)
        statement = statement.replace("torch._C._nn.", "F.").replace("torch.nn.functional.", "F.")
        # Letting go of values early is what keeps a block's memory flat; weights are not values.
        gone = [name for name in freed.removesuffix(" = None").split(" = ") if name and name not in weights]
        if statement:
            lines.append("    " + statement + (f"; {' = '.join(gone)} = None" if gone else ""))
    return lines


def _declarations(module: nn.Module) -> list[str]:
    """Write lines that make an empty tree of the same tensors and leaf modules."""
    state = set(module.state_dict(keep_vars=True))
    parameters = module.named_parameters()
    lines = [f'place(self, "{name}", nn.Parameter(torch.empty({tuple(p.shape)})))' for name, p in parameters]
    for name, buffer in module.named_buffers():
        if name in state:
            lines.append(f'place(self, "{name}", torch.empty({tuple(buffer.shape)}))')
        else:
            lines.append(f'place(self, "{name}", torch.tensor({buffer.tolist()}, device="cpu"), persistent=False)')
    for name, child in module.named_modules():
        if type(child) is not nn.Module and name and not isinstance(child, fx.GraphModule):
            lines.append(f'place(self, "{name}", nn.{child!r})')
    return lines


def _import(name: str, value: Any) -> str:
    """Say how a global that generated code uses comes to be."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    owner, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if owner is None or not own.isidentifier() or keyword.iskeyword(own):
        return f"{name} = float({str(value)!r})" if isinstance(value, float) else ""
    if owner.split(".")[0] not in ("torch", "math", "operator", "builtins", "_operator"):
        raise TraceError(f"a graph calls {owner}.{own}, which the generated model.py could not import")
    if owner == "builtins":
        return "" if name == own else f"{name} = type(None)" if value is type(None) else f"{name} = {own}"
    return f"from {owner} import {own}" + ("" if own == name else f" as {name}")
