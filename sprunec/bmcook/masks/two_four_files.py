"""2:4 masks in BMCook's form: a dict saved by torch.

A block, "encoder.layers.3", stands for a list of pairs of a name inside the block and a mask, over all the block's
tensors in order, with ones for those that are not sparse; the module of any other sparse tensor, "input_embedding",
stands for its mask. Masks have the weight's shape and type; 1 keeps.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.durable import put_file
from sprunec.errors import InputError
from sprunec.families.model_directory import read_config
from sprunec.masks.two_four import Pattern, load_pattern, refuse_uneven, violation

WEIGHT = ".weight"
BLOCK = "encoder.layers"
_IN_BLOCK = re.compile(rf"({BLOCK}\.\d+)\.(.+)")
WRITERS = "give one that BMCook or save_mask of a sparsify pass has written"


def write_pattern(directory: Path, path: Path) -> None:
    """Write the pattern of a model directory as a file; a block without sublayers has an empty list.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    pattern, state, config = load_pattern(directory), read_state(directory), read_config(directory)
    content: dict[str, Any] = {f"{BLOCK}.{index}": [] for index in range(len(config.layers))}
    for name in config.tensors():
        weight, block = state[name], _IN_BLOCK.fullmatch(name)
        mask = pattern[name].to(weight.dtype) if name in pattern else torch.ones_like(weight)
        if block:
            content[block[1]].append((block[2], mask))
        elif name in pattern:
            content[name.removesuffix(WEIGHT)] = mask
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_file(path, buffer.getvalue())


def read_mask_file(
    path: Path,
    kind: str,
    shapes: Mapping[str, Shape],
    targets: Mapping[str, Shape],
    turned: Callable[[str], bool] = lambda name: False,
) -> Pattern:
    """Read the masks of all `targets`.

    Args:
        kind: the pattern that it must have.
        shapes: of all the model's tensors.
        targets: of those that the pass makes sparse.
        turned: of a name, whether groups run along the first dim.

    Raises:
        InputError: the file is damaged, of another model, of other tensors, or no such pattern.
    """
    found: Pattern = {}
    for name, mask in _entries(path):
        if name not in shapes:
            raise InputError.at(path, f"has a mask for {name}, which the model has not", "give the mask of this model")
        if tuple(mask.shape) != shapes[name]:
            message = f"its mask for {name} is {list(mask.shape)}, the weight here is {list(shapes[name])}"
            raise InputError.at(path, message, "give the mask of this model as the passes before leave it")
        if name in found:
            raise InputError.at(path, f"has two masks for {name}", "save the mask again")
        found[name] = mask == 1
        if not bool((found[name] | (mask == 0)).all()):
            message = f"its mask for {name} holds values other than 0 and 1"
            raise InputError.at(path, message, "give a mask, not weights")
    sparse = [name for name, mask in found.items() if not bool(mask.all())]
    if extra := [name for name in sparse if name not in targets]:
        message = f"makes {extra[0]} sparse, which the pass's tensors do not name"
        raise InputError.at(path, message, "name it in tensors, or give another mask")
    if missing := [name for name in targets if name not in sparse]:
        message = f"has no mask for {missing[0]}, which the pass's tensors name"
        raise InputError.at(path, message, "name only what the file makes sparse, or take out path")
    for name, shape in targets.items():
        refuse_uneven(kind, name, shape, input_first=turned(name))
        if broken := violation(kind, found[name], input_first=turned(name)):
            raise InputError.at(path, f"is no {kind} mask: {name} keeps {broken}", "save it again, or take out path")
    return {name: found[name] for name in targets}


def _entries(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        content = load_torch(path)
    except Exception as error:  # Damaged bytes may fail anywhere in the reader.
        raise not_read(path, "a 2:4 mask file", error, WRITERS, "save it again") from error
    message = "is no 2:4 mask file: it must map blocks to lists of (name, mask), and other modules to masks"
    foreign = InputError.at(path, message, WRITERS)
    if not isinstance(content, dict):
        raise foreign
    for key, value in content.items():
        if isinstance(value, list):
            if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value):
                raise foreign
            pairs = [(f"{key}.{name}", mask) for name, mask in value]
        else:
            name = str(key)
            pairs = [(name if name.endswith((WEIGHT, "relative_attention_bias")) else name + WEIGHT, value)]
        for name, mask in pairs:
            if not isinstance(mask, Tensor) or mask.layout is not torch.strided or mask.is_meta or mask.is_complex():
                raise foreign
            yield name, mask.detach()
