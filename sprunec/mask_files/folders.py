"""A folder with one file a layer, as FLAP-like scripts save masks and indices: read as one file with all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import SAFETENSORS, TORCH
from sprunec.errors import InputError
from sprunec.mask_files import flap
from sprunec.mask_files.forms import Rules
from sprunec.mask_files.layer_lists import UNIT_NAMES

SUFFIXES = (".json", *SAFETENSORS, *TORCH)
BEHIND_LAYER = re.compile(r"layers?[._-]?(\d+)(?!\d)", re.IGNORECASE)
NAMES = {*UNIT_NAMES, *flap.UNITS_OF}
MOST_NAMES = 2  # around what is said of a layer: kept, heads
REMEDY = "name each file by its layer, as in layer_0.pt, or name the mask files one by one"


def files_in(folder: Path) -> list[Path]:
    """List the mask files of a folder, which has nothing else; raises InputError."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if strange := [path for path in found if path.suffix not in SUFFIXES or path.is_dir()]:
        raise InputError.at(strange[0], f"is in a folder of masks and ends in none of {', '.join(SUFFIXES)}", REMEDY)
    if not found:
        raise InputError.at(folder, "the folder has no mask files", REMEDY)
    return found


def gathered(folder: Path, opened: Callable[[Path], Any], rules: Rules) -> dict[Any, Any]:
    """Open all files and put what they hold under the numbers of their layers.

    What a file holds under names, such as attn_mask or heads, stands under these; what has no name, under the one in
    the file's own name (heads_3.pt), or none.

    Raises:
        InputError: a file's layer cannot be told, or two say something of the same units.
    """
    whole: dict[Any, Any] = {}
    for path in files_in(folder):
        layer, name = _of_name(path)
        content = opened(path)
        if name and not isinstance(content, Mapping):
            if name in NAMES:
                content = {name: content}
            elif rules.lists_of is None:
                raise InputError.at(path, f'its name says "{name}", which is no unit', 'say which it is: "lists_of"')
        _put(path, whole, content, layer)
    return whole


def _put(path: Path, whole: Any, content: Any, layer: int, names: int = MOST_NAMES) -> None:
    if isinstance(content, Mapping) and names and isinstance(whole, dict):
        for key, value in content.items():
            _put(path, whole.setdefault(key, {}), value, layer, names - 1)
    elif not isinstance(whole, dict) or layer in whole:
        raise InputError.at(path, f"says again what another file of the folder says of layer {layer}", REMEDY)
    else:
        whole[layer] = content


def _of_name(path: Path) -> tuple[int, str]:
    """Tell a file's layer, the number behind "layer" or the only one, and what is left of the name."""
    numbers = BEHIND_LAYER.findall(path.stem) or re.findall(r"\d+", path.stem)
    if len(numbers) != 1 or len(numbers[0]) > 9:
        raise InputError.at(path, f"its name has {len(numbers)} numbers that could be its layer's", REMEDY)
    words = (word for word in re.split(r"[\d._-]+", path.stem.lower()) if word not in ("", "layer", "layers", "model"))
    return int(numbers[0]), "_".join(words)
