"""Masks as files in BMCook's form: 1 keeps, one row per sublayer that the plan's input model has, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sprunec.errors import InputError
from sprunec.model.config import LayerKept

UNIT_OF = {
    "self_att_layer_z": "attention",
    "cross_att_layer_z": "cross_attention",
    "ffn_layer_z": "feed_forward",
    "heads_z": "head",
    "dim_head_z": "dim_head",
    "dimff_z": "dim_ff",
}


def write_masks(directory: Path, before: Sequence[LayerKept], after: Sequence[LayerKept]) -> None:
    """layer_mask.pt, head_mask.pt, dim_head_mask.pt and dimff_mask.pt; a row whose sublayer went is all 0."""
    directory.mkdir(parents=True, exist_ok=True)
    attention = [(b, a) for b, a in zip(before, after, strict=True) if b.heads is not None]
    feed_forward = [(b, a) for b, a in zip(before, after, strict=True) if b.dim_ff is not None]
    layers = {
        "self_att_layer_z": torch.tensor([float(a.heads is not None) for _, a in attention]),
        "cross_att_layer_z": torch.zeros(0),
        "ffn_layer_z": torch.tensor([float(a.dim_ff is not None) for _, a in feed_forward]),
    }
    torch.save(layers, directory / "layer_mask.pt")
    torch.save({"heads_z": _rows([(b.heads, a.heads) for b, a in attention])}, directory / "head_mask.pt")
    torch.save({"dim_head_z": _rows([(b.dim_head, a.dim_head) for b, a in attention])}, directory / "dim_head_mask.pt")
    torch.save({"dimff_z": _rows([(b.dim_ff, a.dim_ff) for b, a in feed_forward])}, directory / "dimff_mask.pt")


def _rows(pairs: Sequence[tuple[tuple[int, ...] | None, tuple[int, ...] | None]]) -> Tensor:
    """(sublayers, units) float32; where layers of the input model differ in width, short rows end in zeros."""
    width = max((len(before or ()) for before, _ in pairs), default=0)
    rows = torch.zeros(len(pairs), width)
    for row, (before, after) in zip(rows, pairs, strict=True):
        kept = set(after or ())
        row[: len(before or ())] = torch.tensor([float(index in kept) for index in before or ()])
    return rows


def read_masks(paths: Sequence[Path], kept: Sequence[LayerKept]) -> dict[tuple[int, str], Tensor]:
    """Bool masks by (layer, unit) from files in BMCook's form, for a model of which `kept` is everything.

    Raises:
        InputError: a file is damaged, holds unknown keys, or a mask's shape or values do not fit the model.
    """
    found: dict[tuple[int, str], Tensor] = {}
    for path in paths:
        for key, rows in _load(path).items():
            if key not in UNIT_OF:
                raise InputError.at(path, f"holds {key!r}", f"a mask file holds some of {', '.join(UNIT_OF)}")
            if rows.numel():
                found |= _by_layer(path, key, rows, kept)
    if not found:
        raise InputError.at(paths[0], "masks nothing", f"a mask file holds some of {', '.join(UNIT_OF)}")
    return found


def _load(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged bytes may fail anywhere in the reader.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError.at(path, f"cannot be read as a mask file: {reason}") from error
    if not isinstance(content, dict) or not all(_is_plain(value) for value in content.values()):
        raise InputError.at(path, "is no mask file: it must map names to tensors")
    return content


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta and not value.is_complex()


def _by_layer(path: Path, key: str, rows: Tensor, kept: Sequence[LayerKept]) -> dict[tuple[int, str], Tensor]:
    unit = UNIT_OF[key]
    layers = [index for index, layer in enumerate(kept) if _units(layer, unit) is not None]
    count = rows.size(0) if rows.dim() else 0
    if count != len(layers):
        raise InputError.at(path, f"{key} has {count} rows, the model has {len(layers)} such sublayers")
    if not torch.isin(rows.float(), torch.tensor([0.0, 1.0])).all():
        raise InputError.at(path, f"{key} holds values other than 0 and 1", "binarize the mask first")
    masks = {}
    for index, row in zip(layers, rows.detach().reshape(len(layers), -1).bool(), strict=True):
        width = len(_units(kept[index], unit) or ())
        if row.numel() < width or bool(row[width:].any()):
            raise InputError.at(path, f"{key} has {row.numel()} columns, layer {index} has {width} units")
        masks[(index, unit)] = row[:width]
    return masks


def _units(layer: LayerKept, unit: str) -> tuple[int, ...] | None:
    single = {"attention": layer.heads, "feed_forward": layer.dim_ff}
    if unit in single:
        return None if single[unit] is None else (0,)
    return {"head": layer.heads, "dim_head": layer.dim_head, "dim_ff": layer.dim_ff}.get(unit)


# --- scores and log-alphas, by (layer, unit) ---


def save_scores(directory: Path, scores: Mapping[tuple[int, str], Tensor]) -> None:
    tensors = {f"{layer}.{unit}": value.detach().contiguous() for (layer, unit), value in scores.items()}
    save_file(tensors, directory / "scores.safetensors")


def load_scores(directory: Path) -> dict[tuple[int, str], Tensor]:
    pairs = ((name.split("."), value) for name, value in load_file(directory / "scores.safetensors").items())
    scores = {(int(layer), unit): value for (layer, unit), value in pairs}
    return dict(sorted(scores.items()))
