"""`model.py` of an emitted model: the family's frame as it stands here, the blocks from their rewritten graphs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sprunec.durable import write_new
from sprunec.families.base import Family, family_of
from sprunec.families.model_directory import empty_model
from sprunec.rewrite.surgery import rewrite
from sprunec.rewrite.trace import TracedBlock, traced
from sprunec.rewrite.traced_source import block_source
from sprunec.units import Cut

HEAD = '''"""A pruned model in plain PyTorch, written by sprunec from its rewritten torch.fx graphs.

    from model import load
    model = load("the directory of this file")

`load` reads config.json and the safetensors beside it, and needs torch and safetensors only. See `FRAME.forward`,
`FRAME.inference` and `FRAME.generate` below.
"""

from __future__ import annotations

import json
from pathlib import Path
'''

PLACE = '''

def place(module: nn.Module, name: str, value, persistent: bool = True) -> None:
    """Put a parameter, a buffer or a module at a dotted name."""
    *owners, leaf = name.split(".")
    for owner in owners:
        if not hasattr(module, owner):
            module.add_module(owner, nn.Module())
        module = getattr(module, owner)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(leaf, value, persistent=persistent)
    else:
        setattr(module, leaf, value)
'''

LOAD = '''

def empty(directory) -> FRAME:
    """The model on the meta device: a shape without memory."""
    config = json.loads((Path(directory) / "config.json").read_text())
    with torch.device("meta"):
        return FRAME(config, [layer() for layer in LAYERS], CACHE_SHAPES)


def load(directory, device="cpu") -> FRAME:
    """The model with its weights, in eval mode."""
    from safetensors.torch import load_file

    directory = Path(directory)
    model = empty(directory)
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state = {name: tensor for file in files for name, tensor in load_file(directory / file).items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval()
'''


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
    """Write the text of model.py; layers whose classes would be equal share one."""
    names: dict[str, str] = {}
    imports: set[str] = set()
    order = []
    for index, module in enumerate(layers):
        source = block_source(module, "Block")
        imports |= source.imports
        names.setdefault(source.text, f"Layer{index}")
        order.append(names[source.text])
    classes = [text.replace("class Block(", f"class {name}(", 1) for text, name in names.items()]
    tables = f"LAYERS = [{', '.join(order)}]\nCACHE_SHAPES = {list(cache_shapes)!r}\n"
    head, load = (text.replace("FRAME", family.frame_class) for text in (HEAD, LOAD))
    blocks = "\n\n\n".join(classes)
    frame = _frame(family.frame, imports)
    return "\n\n".join([head + frame + PLACE, "# --- the blocks ---\n\n\n" + blocks, "\n" + tables + load])


def _frame(sources: Sequence[ModuleType], imports: set[str]) -> str:
    """Put the own text of the frame's modules below one block of imports, the generated code's among them."""
    bodies = []
    for source in sources:
        lines = inspect.getsource(source).split("from __future__ import annotations\n", 1)[1].splitlines()
        first = next(number for number, line in enumerate(lines) if line and not line.startswith(("import ", "from ")))
        imports |= {line for line in lines[:first] if line and not line.startswith("from .")}
        bodies.append("\n".join(lines[first:]))
    return "\n".join(sorted(imports)) + "\n\n" + "\n\n\n".join(bodies) + "\n"
