"""2:4 patterns in files: beside a model's weights, and in BMCook's form.

BMCook's form is a dict saved by torch. A block, "encoder.layers.3", stands for a list of pairs of a name inside the
block and a mask, over all the block's tensors in order, with ones for those that are not sparse; the module of any
other sparse tensor, "input_embedding", stands for its mask. Masks have the weight's shape and type; 1 keeps.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.checkpoint.writer import save_tensors
from sprunec.durable import put_file
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.shapes import Shape, expected_tensors
from sprunec.families.model_directory import read_config, read_state
from sprunec.masks.two_four import Pattern, refuse_uneven, violation

PATTERN = "pattern.safetensors"
WEIGHT = ".weight"
_IN_BLOCK = re.compile(r"(encoder\.layers\.\d+)\.(.+)")


def save_pattern(directory: Path, pattern: Pattern) -> None:
    save_tensors(pattern, directory / PATTERN)


def load_pattern(directory: Path) -> Pattern:
    """The pattern of a model directory; empty where the model is dense."""
    path = directory / PATTERN
    return read_state(path) if path.exists() else {}


def write_pattern(directory: Path, path: Path) -> None:
    """The pattern of a model directory as a file in BMCook's form.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    content = bmcook_form(load_pattern(directory), read_state(directory), read_config(directory))
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_file(path, buffer.getvalue())


def bmcook_form(pattern: Pattern, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Any]:
    """The content of a mask file; a block without sublayers has an empty list."""
    content: dict[str, Any] = {f"encoder.layers.{index}": [] for index in range(config.num_layers)}
    for name in expected_tensors(config):
        weight, block = state[name], _IN_BLOCK.fullmatch(name)
        mask = pattern[name].to(weight.dtype) if name in pattern else torch.ones_like(weight)
        if block:
            content[block[1]].append((block[2], mask))
        elif name in pattern:
            content[name.removesuffix(WEIGHT)] = mask
    return content


def read_mask_file(path: Path, kind: str, shapes: Mapping[str, Shape], targets: Mapping[str, Shape]) -> Pattern:
    """The masks of all `targets` from a file in BMCook's form.

    Args:
        kind: the pattern that it must have.
        shapes: of all the model's tensors.
        targets: of those that the pass makes sparse.

    Raises:
        InputError: the file is damaged, of another model, of other tensors, or no such pattern.
    """
    found: Pattern = {}
    for name, mask in _entries(path, _load(path)):
        if name not in shapes:
            raise InputError.at(path, f"has a mask for {name}, which the model has not", "give the mask of this model")
        if tuple(mask.shape) != shapes[name]:
            message = f"its mask for {name} is {list(mask.shape)}, the weight here is {list(shapes[name])}"
            raise InputError.at(path, message, "give the mask of this model as the passes before leave it")
        if name in found:
            raise InputError.at(path, f"has two masks for {name}", "save the mask again")
        found[name] = _bool(path, name, mask)
    _check_targets(path, found, targets)
    for name, shape in targets.items():
        refuse_uneven(kind, name, shape)
        broken = violation(kind, found[name])
        if broken:
            raise InputError.at(path, f"is no {kind} mask: {name} keeps {broken}", "save it again, or take out path")
    return {name: found[name] for name in targets}


def _load(path: Path) -> dict[str, Any]:
    try:
        content = load_torch(path)
    except Exception as error:  # Damaged bytes may fail anywhere in the reader.
        hint = "give one that BMCook or save_mask of a sparsify pass has written"
        raise not_read(path, "a 2:4 mask file", error, hint, "save it again") from error
    if not isinstance(content, dict):
        raise _foreign(path)
    return content


def _foreign(path: Path) -> InputError:
    message = "is no 2:4 mask file: it must map blocks to lists of (name, mask), and other modules to masks"
    return InputError.at(path, message, "give one that BMCook or save_mask of a sparsify pass has written")


def _entries(path: Path, content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensor names with their masks."""
    for key, value in content.items():
        pairs = [(f"{key}.{pair[0]}", pair[1]) for pair in _pairs(path, value)] if isinstance(value, list) else []
        single = [] if isinstance(value, list) else [(_whole_name(str(key)), value)]
        for name, mask in (*pairs, *single):
            if not isinstance(mask, Tensor) or mask.layout is not torch.strided or mask.is_meta or mask.is_complex():
                raise _foreign(path)
            yield name, mask


def _pairs(path: Path, value: list[Any]) -> list[Any]:
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value):
        raise _foreign(path)
    return value


def _whole_name(module: str) -> str:
    return module if module.endswith((WEIGHT, "relative_attention_bias")) else module + WEIGHT


def _bool(path: Path, name: str, mask: Tensor) -> Tensor:
    mask = mask.detach()
    kept = mask == 1
    if not bool((kept | (mask == 0)).all()):
        raise InputError.at(path, f"its mask for {name} holds values other than 0 and 1", "give a mask, not weights")
    return kept


def _check_targets(path: Path, found: Pattern, targets: Mapping[str, Shape]) -> None:
    """The file is about exactly these tensors."""
    extra = [name for name, mask in found.items() if name not in targets and not bool(mask.all())]
    if extra:
        message = f"makes {extra[0]} sparse, which the pass's tensors do not name"
        raise InputError.at(path, message, "name it in tensors, or give another mask")
    missing = [name for name in targets if name not in found or bool(found[name].all())]
    if missing:
        message = f"has no mask for {missing[0]}, which the pass's tensors name"
        raise InputError.at(path, message, "name only what the file makes sparse, or take out path")
