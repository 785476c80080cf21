"""Mask files of three forms: written, and recognised by what they hold.

bmcook         a dict of self_att_layer_z, ffn_layer_z, heads_z, ...; 1 keeps
plugin         a dict of transformer, att, ffn, num_heads, dim_head, dim_ff, as BMCook's sprune plugin saves it; 1 keeps
mask_modules   a list of [attention, feed-forward] for every layer, CPM-Live's own; true removes

Files are read with `weights_only`, so nothing in them is executed; `.json` files are read as JSON.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from sprunec.bmcook.numpy_values import Array, stand_ins
from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.durable import put_file
from sprunec.errors import InputError
from sprunec.masks.mask_tensors import FINE_KEYS, mask_rows, mask_tensors, present
from sprunec.text_files import read_json
from sprunec.units import INSIDE, SUBLAYERS, UNITS, Kept

MOST_LAYERS, MASK_FILE = 100_000, "a mask file"
CROSS, MODULES = "cross_att_layer_z", "mask_modules"
# the units that the keys of a dict stand for; the plugin has one for each kind, and the pairs of mask_modules have none
FORMS: Mapping[str, Mapping[str, str]] = {
    "bmcook": {"self_att_layer_z": "attention", "ffn_layer_z": "feed_forward"} | FINE_KEYS,
    "plugin": dict(zip(("transformer", "att", "ffn", "num_heads", "dim_head", "dim_ff"), UNITS, strict=True)),
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
    """One mask of a file, of a form and under a key: (rows, columns) bool, what is kept of a unit."""

    path: Path
    form: str
    key: str
    unit: str
    kept: Tensor


def read_mask_tensors(path: Path) -> list[MaskTensor]:
    """Read all masks of a file.

    Raises:
        InputError: the file cannot be read, is of none of the forms, or holds anything but 0 and 1.
    """
    if path.suffix == ".json":
        content = read_json(path, MASK_FILE, KNOWN)
    else:
        try:
            with torch.serialization.safe_globals(stand_ins()):
                content = load_torch(path)
        except Exception as error:  # Damaged bytes may fail anywhere in the reader.
            raise not_read(path, MASK_FILE, error, KNOWN, KNOWN) from error
    if isinstance(content, Mapping) and MODULES in content:
        content = content[MODULES]
    content = _own(content)
    if _is_mask(content, torch.bool) and content.dim() == 2 and content.size(0) <= MOST_LAYERS:
        content = list(content)
    if isinstance(content, list | tuple):
        removed = [_pair(path, index, _own(pair)) for index, pair in enumerate(content)]
        kept = ~torch.tensor(removed, dtype=torch.bool).reshape(-1, 2, 1)
        return [MaskTensor(path, MODULES, MODULES, unit, kept[:, i]) for i, unit in enumerate(SUBLAYERS)]
    if not isinstance(content, Mapping) or not content:
        raise InputError.at(path, f"is no mask file: it holds {_kind(content)}", KNOWN)
    form = "plugin" if set(content) & set(FORMS["plugin"]) else "bmcook"
    masks = [found for key, value in content.items() if (found := _mask(path, form, key, _own(value)))]
    if not masks:
        raise InputError.at(path, "masks nothing", KNOWN)
    return [_binary(mask) for mask in masks]


def _own(value: Any) -> Any:
    """Give NumPy's array as a tensor, anything else as it is."""
    return torch.from_numpy(value.value.copy()) if isinstance(value, Array) and value.value is not None else value


def _mask(path: Path, form: str, key: Any, values: Any) -> MaskTensor | None:
    """Give one entry of a dict; None for the empty mask of a cross-attention, which no such model has."""
    if key == CROSS and form == "bmcook" and _is_mask(values):
        if values.numel():
            message = f"{key} has {values.numel()} rows, and the model has no cross-attention"
            raise InputError.at(path, message, "give a mask of this model")
        return None
    if key not in FORMS[form]:
        raise InputError.at(path, f"holds {key!r}", _hint(key, form))
    if not _is_mask(values):
        raise InputError.at(path, f"{key} is {_kind(values)}, not a tensor of 0 and 1", KNOWN)
    if not values.dim():
        raise InputError.at(path, f"{key} is a single number, not one for every sublayer", KNOWN)
    values = values.detach().reshape(len(values), values[0].numel() if len(values) else 0)
    return MaskTensor(path, form, key, FORMS[form][key], values)


def _binary(mask: MaskTensor) -> MaskTensor:
    soft = (~torch.isin(mask.kept.float(), torch.tensor([0.0, 1.0]))).nonzero()
    if len(soft):
        row, column = soft[0].tolist()
        first = f"{float(mask.kept[row, column]):g} in row {row}, column {column}"
        message = f"{mask.key} holds {len(soft):,} values other than 0 and 1, the first {first}"
        raise InputError.at(mask.path, message, "binarize the mask first")
    return mask._replace(kept=mask.kept.bool())


def _is_mask(value: object, dtype: torch.dtype | None = None) -> TypeGuard[Tensor]:
    """Tell whether it is a tensor whose numbers can be read."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.layout is not torch.strided:
        return False
    return not value.is_meta and not value.is_complex() and dtype in (None, value.dtype)


def _hint(key: Any, form: str) -> str:
    if key == "dim_model":
        return "the model's width is shared by all layers and cannot be cut; leave it out"
    if str(key).startswith("encoder.layers."):
        return "this looks like a 2:4 mask or a checkpoint; load-mask takes masks of heads, dims and sublayers"
    return f"beside its other names a mask file holds some of {', '.join(FORMS[form])}" if form == "plugin" else KNOWN


def _pair(path: Path, index: int, pair: Any) -> list[bool]:
    items = pair.tolist() if _is_mask(pair) and pair.shape == (2,) else pair
    if isinstance(items, list | tuple) and len(items) == 2:
        values = [item.item() if _is_mask(item := _own(each)) and item.numel() == 1 else item for each in items]
        if all(type(value) in (bool, int) and value in (0, 1) for value in values):
            return [bool(value) for value in values]
    message = f"mask_modules holds {_kind(pair)} for layer {index}"
    raise InputError.at(path, message, "give [attention, feed-forward], true for a sublayer that is removed")


def _kind(value: Any, within: bool = False) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple) and len(value) <= 3 and not within:
        return f"[{', '.join(_kind(item, within=True) for item in value)}]"
    size = f" of length {len(value)}" if isinstance(value, list | tuple | Mapping) else ""
    return f"a {type(value).__name__}{size}"
