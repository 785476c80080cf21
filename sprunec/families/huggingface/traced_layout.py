"""The layout of a model that no row of `model_types.py` describes, read off its class: its blocks' graphs, its config.

What a row says of tensors follows from the graphs. Which key of the config counts which unit is tried out: a key with
the unit's number is another number, and a block is built by that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from torch import nn

from sprunec.errors import InputError, TraceError
from sprunec.families.block_calls import UNIT_READERS, BlockUnits, CalledBlock, Terms
from sprunec.families.huggingface.stock_model import build_block, build_stock, built_model
from sprunec.families.huggingface.tensor_layouts import KEYS, UNITS, Layout
from sprunec.families.huggingface.transformers_config import TransformersLayer

LETTERS = {unit: letter for letter, unit in UNITS.items()}


@lru_cache(maxsize=2)
def read_layout(source: str) -> dict[str, Any]:
    """Describe the class that a config.json names: its layout, its sizes by letter, and each layer's.

    Raises:
        ValueError: transformers has no such class, its blocks cannot be traced, or are made of different tensors.
    """
    try:
        whole, blocks = built_model(source, None)
        units = UNIT_READERS["traced"].read(blocks)
    except (TraceError, InputError) as error:
        raise ValueError(str(error)) from None
    table, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    names = {module: f"{name}.weight" for name, module in whole.named_modules()}
    sizes = {"L": len(blocks), "V": table.weight.shape[0], "D": table.weight.shape[1]}
    paths = tuple(f"{block.path}." for block in blocks)
    parameters = whole.named_parameters(remove_duplicate=False)
    outside = {name: _numbers(tensor.shape) for name, tensor in parameters if not name.startswith(paths)}
    lists = _lists(whole.config, len(blocks))
    layers = [_layer(each) for each in units]
    layout = Layout(
        title=type(whole).__name__,
        blocks=blocks[0].path.rpartition(".")[0],
        attention=_tensors(units, "attention"),
        feed_forward=_tensors(units, "feed_forward"),
        both=_tensors(units, ""),
        tables={names[table]: outside[names[table]]} | outside,
        keys=_keys(whole.config, blocks[0], {**layers[0].counts, **sizes}),
        by_layer=tuple(lists),
        fixed=units[0].fixed,
        input_first=tuple(dict.fromkeys(name for block in blocks for name in _input_first(block.module))),
        head=names[head],
    )
    tied = head.weight is table.weight
    return {"layout": asdict(layout), "sizes": sizes, "layers": [*map(asdict, layers)], "tied": tied}


def _lists(known: Any, layers: int) -> dict[str, list[Any]]:
    """Find the lists in a config that have an entry a layer."""
    lists = {key: value for key, value in known.to_dict().items() if "layer" in key and isinstance(value, list)}
    return {key: value for key, value in lists.items() if len(value) == layers}


def _input_first(block: nn.Module) -> list[str]:
    """List the matrices of a block that are (input, output)."""
    from transformers.pytorch_utils import Conv1D

    return [f"{name}.weight" for name, module in block.named_modules() if isinstance(module, Conv1D)]


def _numbers(shape: Sequence[int]) -> str:
    return " ".join(map(str, shape))


def _tensors(units: Sequence[BlockUnits], kind: str) -> dict[str, str]:
    """Write down the tensors of a kind of sublayer, where all blocks that have one have the same.

    Raises:
        ValueError: they do not.
    """
    found: dict[str, str] = {}
    for index, block in enumerate(units):
        own = {name: " ".join(map(_dim, dims)) for name, dims in block.tensors.get(kind, {}).items()}
        if own and found and own != found:
            name = next(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
            raise ValueError(f"its layers are made of different tensors: {name} of layer {index}")
        found = found or own
    return found


def _dim(terms: Terms) -> str:
    return "+".join(f"{number}{''.join(LETTERS[unit] for unit in units)}" for number, units in terms)


def _layer(units: BlockUnits) -> TransformersLayer:
    """Count a layer's units; how wide a head is that cannot be cut so, the narrowest matrix of heads tells."""
    dims = [terms for tensors in units.tensors.values() for shape in tensors.values() for terms in shape]
    width = min((terms[0][0] for terms in dims if len(terms) == 1 and terms[0][1] == ("head",)), default=0)
    counts = {"dim_head": width, **units.counts} | ({"dim_head": width} if "dim_head" in units.fixed else {})
    return TransformersLayer(*(counts.get(unit, 0) for unit in ("head", "kv_group", "dim_head", "dim_ff")))


def _keys(known: Any, block: CalledBlock, numbers: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Find the key of a config that counts each kind of unit: changed, it changes how a block is built.

    Of several the one is taken that other families call so; none where no key does.
    """
    counts = {LETTERS.get(name, name): number for name, number in numbers.items()}
    counts.setdefault("G", counts.get("H", 0))
    values = {key: value for key, value in known.to_dict().items() if type(value) is int and value > 0}
    found: dict[str, tuple[str, ...]] = {}
    for letter in "LDHGEF":
        keys = [*(key for key in KEYS[letter] if key in values), *values]
        alike = (key for key in keys if values[key] == counts.get(letter) and (key,) not in found.values())
        counts_it = _counts_blocks if letter == "L" else _changes_block
        found[letter] = next(((key,) for key in alike if counts_it(known, block, key, 2 * values[key])), ())
    return found


def _changes_block(known: Any, block: CalledBlock, key: str, number: int) -> bool:
    changed, plain = (build_block(known, block, 0, changes) for changes in ({key: number}, {}))
    return changed is not None and plain is not None and _looks(changed) != _looks(plain)


def _looks(block: nn.Module) -> dict[str, Any]:
    """List the sizes of a block's tensors, and the numbers among its modules' attributes."""
    found: dict[str, Any] = {name: tensor.shape for name, tensor in block.named_parameters()}
    for path, module in block.named_modules():
        found |= {f"{path}.{name}": value for name, value in vars(module).items() if isinstance(value, int | float)}
    return found


def _counts_blocks(known: Any, block: CalledBlock, key: str, number: int) -> bool:
    changed = copy.copy(known)
    try:
        for name, value in _lists(known, number // 2).items():
            setattr(changed, name, 2 * value)
        setattr(changed, key, number)
        blocks = build_stock(changed).get_submodule(block.path.rpartition(".")[0])
    except Exception:  # whatever a class says of sizes that it cannot have
        return False
    return len(list(blocks.children())) == number
