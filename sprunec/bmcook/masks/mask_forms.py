"""What a mask file holds, recognised by its content.

BMCook     a dict of self_att_layer_z, ffn_layer_z, heads_z, ...; 1 keeps
plugin     a dict of transformer, att, ffn, num_heads, dim_head, dim_ff, as BMCook's sprune plugin saves it; 1 keeps
modules    a list of [attention, feed-forward] for every layer, CPM-Live's `mask_modules`; true removes

Files are read with `weights_only`, so nothing in them is executed; `.json` files are read as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sprunec.bmcook.masks.mask_files import BMCOOK_KEYS, PLUGIN_KEYS
from sprunec.bmcook.numpy_values import Array, stand_ins
from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.errors import InputError
from sprunec.text_files import read_json

MOST_LAYERS, MASK_FILE = 100_000, "a mask file"
CROSS = "cross_att_layer_z"
BMCOOK = {"self_att_layer_z": "attention", "ffn_layer_z": "feed_forward"} | {k: u for u, k in BMCOOK_KEYS.items()}
PLUGIN = {key: unit for unit, key in PLUGIN_KEYS.items()}
KNOWN = (
    f"a mask file maps some of {', '.join([*BMCOOK, *PLUGIN])} to tensors, where 1 keeps; or it is mask_modules, "
    "a list of [attention, feed-forward] for every layer, where true removes"
)


@dataclass(frozen=True)
class Sheet:
    """One mask of a file.

    Attributes:
        key: its name in the file.
        form: bmcook, plugin or mask_modules.
        unit: what is kept or cut.
        values: (rows,) or (rows, units), perhaps with further axes of length 1; 1 keeps. Not looked at yet.
    """

    path: Path
    key: str
    form: str
    unit: str
    values: Tensor

    @property
    def rows(self) -> int:
        return self.values.size(0) if self.values.dim() else 0

    @property
    def columns(self) -> int:
        return self.values[0].numel() if self.rows else 0

    def kept(self) -> Tensor:
        """(rows, columns) bool.

        Raises:
            InputError: there is anything but 0 and 1.
        """
        values = self.values.detach().reshape(self.rows, self.columns)
        soft = (~torch.isin(values.float(), torch.tensor([0.0, 1.0]))).nonzero()
        if len(soft):
            row, column = soft[0].tolist()
            first = f"{float(values[row, column]):g} in row {row}, column {column}"
            message = f"{self.key} holds {len(soft):,} values other than 0 and 1, the first {first}"
            raise InputError.at(self.path, message, "binarize the mask first")
        return values.bool()


def read_sheets(path: Path) -> list[Sheet]:
    """All masks of a file.

    Raises:
        InputError: the file cannot be read, or is of none of the forms.
    """
    content = _load(path)
    if isinstance(content, Mapping) and "mask_modules" in content:
        content = content["mask_modules"]
    content = _own(content)
    if _is_mask(content, torch.bool) and content.dim() == 2 and content.size(0) <= MOST_LAYERS:
        content = list(content)
    if isinstance(content, list | tuple):
        return _modules(path, content)
    if not isinstance(content, Mapping) or not content:
        raise InputError.at(path, f"is no mask file: it holds {_kind(content)}", KNOWN)
    return _tensors(path, content)


def check_sheets(paths: Iterable[Path]) -> None:
    """Raises InputError for a file that holds no masks, or one that is not 0 and 1 throughout."""
    for sheet in (sheet for path in paths for sheet in read_sheets(path)):
        if sheet.rows:
            sheet.kept()


def _load(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path, MASK_FILE, KNOWN)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return load_torch(path)
    except Exception as error:  # Damaged bytes may fail anywhere in the reader.
        raise not_read(path, MASK_FILE, error, KNOWN, KNOWN) from error


def _own(value: Any) -> Any:
    """NumPy's array as a tensor."""
    return torch.from_numpy(value.value.copy()) if isinstance(value, Array) else value


def _tensors(path: Path, content: Mapping[Any, Any]) -> list[Sheet]:
    form, units = ("plugin", PLUGIN) if set(content) & set(PLUGIN) else ("bmcook", BMCOOK)
    sheets = []
    for key, value in content.items():
        values = _own(value)
        if key == CROSS and form == "bmcook" and _is_mask(values):
            if values.numel():
                message = f"{key} has {values.numel()} rows, and the model has no cross-attention"
                raise InputError.at(path, message, "give a mask of this model")
            continue
        if key not in units:
            raise InputError.at(path, f"holds {key!r}", _hint(key, units))
        if not _is_mask(values):
            raise InputError.at(path, f"{key} is {_kind(values)}, not a tensor of 0 and 1", KNOWN)
        if not values.dim():
            raise InputError.at(path, f"{key} is a single number, not one for every sublayer", KNOWN)
        sheets.append(Sheet(path, key, form, units[key], values))
    if not sheets:
        raise InputError.at(path, "masks nothing", KNOWN)
    return sheets


def _is_mask(value: object, dtype: torch.dtype | None = None) -> TypeGuard[Tensor]:
    """A tensor whose numbers are there to be looked at."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.layout is not torch.strided:
        return False
    return not value.is_meta and not value.is_complex() and dtype in (None, value.dtype)


def _hint(key: Any, units: Iterable[str]) -> str:
    if key == "dim_model":
        return "the model's width is shared by all layers and cannot be cut; leave it out"
    if str(key).startswith("encoder.layers."):
        return "this looks like a 2:4 mask or a checkpoint; load-mask takes masks of heads, dims and sublayers"
    return f"beside its other names a mask file holds some of {', '.join(units)}" if units is PLUGIN else KNOWN


def _modules(path: Path, pairs: Iterable[Any]) -> list[Sheet]:
    """(layers,) for attention and for feed-forward; what the file removes is 0 here."""
    removed = [_pair(path, index, _own(pair)) for index, pair in enumerate(pairs)]
    kept = ~torch.tensor(removed, dtype=torch.bool).reshape(-1, 2)
    units = ("attention", "feed_forward")
    return [Sheet(path, "mask_modules", "mask_modules", unit, kept[:, i]) for i, unit in enumerate(units)]


def _pair(path: Path, index: int, pair: Any) -> list[bool]:
    values = pair.tolist() if _is_mask(pair) and pair.shape == (2,) else pair
    if isinstance(values, list | tuple) and len(values) == 2:
        values = [_own(item) for item in values]
        values = [item.item() if _is_mask(item) and item.numel() == 1 else item for item in values]
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
