"""Lists by layer: `{"kept": {"heads": {"0": [1, 2], ...}, "dim_ff": {...}}}`, of indices or of booleans.

Whether what is listed stays is said in the file, by `kept` or `removed` around it, or by the pass's `lists`. So is of
which units it is: by a name around it, or by `lists_of`; a bare {layer: [...]} lists heads, where it can list nothing
else by that number, which is where no keys and values are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sprunec.errors import InputError
from sprunec.mask_files.forms import UNLISTED, MaskForm, Rules, has_key
from sprunec.mask_files.layer_values import layer_number, rows_of
from sprunec.masks.layer_masks import LayerMask
from sprunec.units import INSIDE, UNITS

SAYS = ("kept", "removed")
UNIT_NAMES = {name: unit for unit in INSIDE for name in (unit, UNITS[unit].field)}
KNOWN = (
    f"lists by layer, {{layer: [...]}}, under a name out of {', '.join(dict.fromkeys(UNIT_NAMES))}, "
    'all of them under "kept" or "removed"'
)


def recognises(content: Any, rules: Rules) -> bool:
    if not isinstance(content, Mapping):
        return isinstance(content, list | tuple | Tensor) and bool(rules.lists or rules.lists_of)
    named = any(name in UNIT_NAMES and isinstance(value, Mapping | list | tuple) for name, value in content.items())
    return has_key(content, SAYS) or named or (bool(content) and all(layer_number(key) is not None for key in content))


def read(path: Path, content: Any, rules: Rules) -> list[LayerMask]:
    found = []
    for says, part in _parts(path, content):
        if says is not None and rules.lists not in (None, says):
            message = f'lists what is {says}, and the plan says "lists": "{rules.lists}"'
            raise InputError.at(path, message, "remove the option")
        for name, value in _named(path, part):
            keeps = says or rules.lists
            if keeps is None:
                message = f"does not say whether {name or 'what it lists'} is kept or removed"
                raise InputError.at(path, message, f'{UNLISTED}, or write {{"kept": ...}} around it')
            key, unit = name or "the list", UNIT_NAMES[name] if name else rules.lists_of
            if unit is None and not isinstance(value, Mapping):
                raise InputError.at(path, "does not say of which units its rows are", 'say it: "lists_of"')
            rows = rows_of(path, key, value, rules if keeps == "kept" else rules._replace(threshold=None))
            asked = frozenset({"lists"} | (set() if name else {"lists_of"}))
            found.append(LayerMask(path, key, unit, keeps == "kept", rows.layers, rows.soft, asked))
    return [mask for mask in found if mask.layers]


def _parts(path: Path, content: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield what is listed as kept, as removed, or without such a word."""
    if not has_key(content, SAYS):
        yield None, content
        return
    for says, part in content.items():
        if says not in SAYS:
            raise InputError.at(path, f"holds {says!r} beside {' or '.join(SAYS)}", KNOWN)
        yield says, part


def _named(path: Path, part: Any) -> Iterator[tuple[str, Any]]:
    """Yield lists with the names that they have, or one without."""
    if not has_key(part, UNIT_NAMES):
        yield "", part
        return
    if strange := [name for name in part if name not in UNIT_NAMES]:
        raise InputError.at(path, f"holds {strange[0]!r} beside names of units", KNOWN)
    yield from part.items()


LAYER_LISTS = MaskForm("layer-lists", KNOWN, recognises, read)
