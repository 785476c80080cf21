"""Mask files of three forms: written, and recognised by what they hold.

bmcook         a dict of self_att_layer_z, ffn_layer_z, heads_z, ...; 1 keeps
plugin         a dict of transformer, att, ffn, num_heads, dim_head, dim_ff, as BMCook's sprune plugin saves it; 1 keeps
mask_modules   a list of [attention, feed-forward] for every layer, CPM-Live's own; true removes
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sprunec.durable import put_file
from sprunec.errors import InputError
from sprunec.masks.given_values import as_tensor, binary, in_words, is_readable
from sprunec.masks.mask_tensors import FINE_KEYS, mask_rows, mask_tensors, present
from sprunec.units import INSIDE, SUBLAYERS, Kept

MOST_LAYERS = 100_000
CROSS, MODULES = "cross_att_layer_z", "mask_modules"
WIDTH, BLOCKS = "dim_model", "encoder.layers."  # what is none of them, and told
# the units that the keys of a dict stand for; the plugin has one for each kind, and the pairs of mask_modules have none
FORMS: Mapping[str, Mapping[str, str]] = {
    "bmcook": {"self_att_layer_z": "attention", "ffn_layer_z": "feed_forward"} | FINE_KEYS,
    "plugin": {"transformer": "block", "att": "attention", "ffn": "feed_forward", "num_heads": "head"}
    | {unit: unit for unit in ("dim_head", "dim_ff")},
}
KNOWN = (
    f"a mask file maps some of {', '.join(key for keys in FORMS.values() for key in keys)} to tensors, where 1 keeps; "
    "or it is mask_modules, a list of [attention, feed-forward] for every layer, where true removes"
)


def write_mask(path: Path, form: str, units: Collection[str], whole: Kept, before: Kept, after: Kept) -> None:
    """Write what one pass has made of `units`, put in place whole; a file with this content is left alone.

    Args:
        form: bmcook, plugin or mask_modules; the last as JSON if the path ends so.
        whole, before, after: as `mask_tensors` takes them.

    Raises:
        OSError: the file cannot be written; what was there is as it was.
    """
    content: Any
    if form == MODULES:
        content = [[not after.has(index, kind) for kind in SUBLAYERS] for index in range(len(after))]
        if path.suffix == ".json":
            put_file(path, (json.dumps(content) + "\n").encode())
            return
    elif form == "bmcook":
        content = mask_tensors(units, whole, before, after)
    else:  # float16 (sublayers, units), where a sublayer as a whole is one unit
        content = OrderedDict()
        for key, unit in FORMS[form].items():
            if unit in units:
                inside = unit in INSIDE
                rows = mask_rows(unit, whole, before, after) if inside else present(unit, before, after)[:, None]
                content[key] = rows.half()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_file(path, buffer.getvalue())


class MaskTensor(NamedTuple):
    """One mask of a file, of a form and under a key: (rows, columns) bool, what is kept of a unit; and how many values
    of what is kept were other than 1."""

    path: Path
    form: str
    key: str
    unit: str
    kept: Tensor
    soft: int = 0


def is_bmcook(content: Any) -> bool:
    """Tell whether what a file holds is of one of these forms, sound or not."""
    if not isinstance(content, Mapping):
        return isinstance(content, list | tuple | Tensor)
    numbered = any(str(key).startswith(BLOCKS) for key in content)
    return numbered or bool(set(content) & {MODULES, CROSS, WIDTH}) or _form(content) is not None


def read_mask_tensors(path: Path, content: Any, threshold: float | None = None) -> list[MaskTensor]:
    """Read all masks of what a file holds.

    Raises:
        InputError: it is of none of the forms, or holds anything but 0 and 1 and there is no threshold.
    """
    if isinstance(content, Mapping) and MODULES in content:
        content = as_tensor(content[MODULES])
    if is_readable(content, torch.bool) and content.dim() == 2 and content.size(0) <= MOST_LAYERS:
        content = list(content)
    if isinstance(content, list | tuple):
        removed = [_pair(path, index, as_tensor(pair)) for index, pair in enumerate(content)]
        kept = ~torch.tensor(removed, dtype=torch.bool).reshape(-1, 2, 1)
        return [MaskTensor(path, MODULES, MODULES, unit, kept[:, i]) for i, unit in enumerate(SUBLAYERS)]
    if not isinstance(content, Mapping) or not content:
        raise InputError.at(path, f"is no mask file: it holds {in_words(content)}", KNOWN)
    form = _form(content) or "bmcook"
    found = [_mask(path, form, key, as_tensor(value), threshold) for key, value in content.items()]
    return [mask for mask in found if mask is not None]


def _form(content: Mapping[Any, Any]) -> str | None:
    """Name the form of a dict of tensors, the plugin's first: a key of its is none of BMCook's."""
    lists = {key for key, value in content.items() if key in INSIDE and isinstance(value, Mapping | list | tuple)}
    return next((form for form in ("plugin", "bmcook") if (content.keys() - lists) & FORMS[form].keys()), None)


def _mask(path: Path, form: str, key: Any, values: Any, threshold: float | None) -> MaskTensor | None:
    """Give one entry of a dict; None for the empty mask of a cross-attention, which no such model has."""
    if key == CROSS and form == "bmcook" and is_readable(values):
        if values.numel():
            message = f"{key} has {values.numel()} rows, and the model has no cross-attention"
            raise InputError.at(path, message, "give a mask of this model")
        return None
    if key not in FORMS[form]:
        raise InputError.at(path, f"holds {key!r}", _hint(key, form))
    if not is_readable(values):
        raise InputError.at(path, f"{key} is {in_words(values)}, not a tensor of 0 and 1", KNOWN)
    if not values.dim():
        raise InputError.at(path, f"{key} is a single number, not one for every sublayer", KNOWN)
    values = values.detach().reshape(len(values), values[0].numel() if len(values) else 0)
    return MaskTensor(path, form, key, FORMS[form][key], *binary(path, key, values, threshold))


def _hint(key: Any, form: str) -> str:
    if key == WIDTH:
        return "the model's width is shared by all layers and cannot be cut; leave it out"
    if str(key).startswith(BLOCKS):
        return "this looks like a 2:4 mask or a checkpoint; load-mask takes masks of heads, dims and sublayers"
    return f"beside its other names a mask file holds some of {', '.join(FORMS[form])}" if form == "plugin" else KNOWN


def _pair(path: Path, index: int, pair: Any) -> list[bool]:
    items = pair.tolist() if is_readable(pair) and pair.shape == (2,) else pair
    if isinstance(items, list | tuple) and len(items) == 2:
        values = [item.item() if is_readable(item := as_tensor(each)) and item.numel() == 1 else item for each in items]
        if all(type(value) in (bool, int) and value in (0, 1) for value in values):
            return [bool(value) for value in values]
    message = f"mask_modules holds {in_words(pair)} for layer {index}"
    raise InputError.at(path, message, "give [attention, feed-forward], true for a sublayer that is removed")
