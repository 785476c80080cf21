"""A rewrite as data: which indices every tensor keeps.

A recipe knows no module and no graph. It cuts a live model's tensors, a checkpoint's, or an optimizer's moments alike;
two recipes in a row are one; and it puts a small model's tensors back into the shape they were cut from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.errors import TraceError
from sprunec.model.checkpoint import read_state, write_state
from sprunec.model.config import LayerKept
from sprunec.rewrite.axes import Groups
from sprunec.rewrite.program import Program, Residual
from sprunec.rewrite.sites import SUBLAYER_OF
from sprunec.rewrite.trace import TracedBlock

Indices = tuple[int, ...]
Keep = dict[int, Indices]


@dataclass(frozen=True)
class Recipe:
    """What is kept: by tensor name and dim; tensors not named stay whole, tensors in `removed` go."""

    slices: Mapping[str, Mapping[int, Indices]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kept parts, as new contiguous tensors; whole tensors are passed on as they are."""
        return {name: self.cut_one(name, tensor) for name, tensor in tensors.items() if name not in self.removed}

    def cut_one(self, name: str, tensor: Tensor) -> Tensor:
        for dim, kept in self.slices.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(kept, dtype=torch.long, device=tensor.device))
        return tensor

    def expand(self, full: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`full` with the small model's tensors put back where they were cut from; cut parts keep what `full` has."""
        result = dict(full)
        for name, tensor in small.items():
            if name in self.slices:
                dims = self.slices[name]
                grid = [torch.tensor(dims.get(d, range(size))) for d, size in enumerate(full[name].shape)]
                result[name] = full[name].clone()
                result[name][torch.meshgrid(*grid, indexing="ij")] = tensor.to(full[name].dtype)
            else:
                result[name] = tensor
        return result

    def then(self, later: Recipe) -> Recipe:
        """One recipe that does what this and then `later` do."""
        slices = {name: dict(dims) for name, dims in self.slices.items() if name not in later.removed}
        for name, dims in later.slices.items():
            mine = slices.setdefault(name, {})
            for dim, kept in dims.items():
                mine[dim] = tuple(mine[dim][i] for i in kept) if dim in mine else kept
        return Recipe(slices, tuple(dict.fromkeys((*self.removed, *later.removed))))

    def to_dict(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Readable: every tensor of `shapes`, with the [first, last + 1) runs of indices kept along each cut dim."""
        entries: dict[str, Any] = {}
        for name, shape in shapes.items():
            entry: dict[str, Any] = {"shape": list(shape), "kept": "all"}
            if name in self.removed:
                entry["kept"] = None
            elif name in self.slices:
                entry["kept"] = {str(dim): _runs(kept) for dim, kept in self.slices[name].items()}
            entries[name] = entry
        return {"tensors": entries}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        entries = data["tensors"].items()
        slices = {
            name: {int(dim): _indices(runs) for dim, runs in entry["kept"].items()}
            for name, entry in entries
            if isinstance(entry["kept"], dict)
        }
        return cls(slices, tuple(name for name, entry in entries if entry["kept"] is None))


def make_recipe(blocks: Iterable[TracedBlock], kept: Sequence[LayerKept]) -> Recipe:
    """The recipe that leaves `kept` of each traced block, in the blocks' own indices.

    Raises:
        TraceError: something is to be cut where the trace found no site for it.
    """
    slices: dict[str, dict[int, Indices]] = {}
    removed: list[str] = []
    for block in blocks:
        layer = kept[block.index]
        gone = {f"{block.path}.{name}" for r in absent(block, block.forward, layer) for name in r.tensors}
        removed += sorted(gone)
        keep = keeps(block, layer, "forward")
        for name, dims in _tensor_slices(block.forward.groups, keep).items():
            if f"{block.path}.{name}" not in gone and name in _state(block):
                slices[f"{block.path}.{name}"] = dims
    return Recipe(slices, tuple(removed))


def absent(block: TracedBlock, program: Program, kept: LayerKept) -> tuple[Residual, ...]:
    """The residuals of one of the block's programs whose sublayers `kept` leaves out.

    Raises:
        TraceError: the program has other sublayers than the plain forward.
    """
    gone = {"attention": kept.heads is None, "feed_forward": kept.dim_ff is None}
    found = tuple(residual for residual in program.residuals if gone[residual.kind])
    wanted = [residual.kind for residual in block.forward.residuals if gone[residual.kind]]
    if [residual.kind for residual in found] != wanted:
        raise TraceError(f"{block.path}: its cached forward does not add {' and '.join(wanted)} as its forward does")
    return found


def keeps(block: TracedBlock, kept: LayerKept, method: str) -> Keep:
    """Group number -> indices kept, for one method's graph; only groups that lose something."""
    wanted = {"head": kept.heads, "dim_head": kept.dim_head, "dim_ff": kept.dim_ff}
    result: Keep = {}
    for unit, indices in wanted.items():
        if indices is None or SUBLAYER_OF[unit] not in block.sublayers():
            continue
        site = block.sites.get(unit)
        if site is None:
            if len(indices) < block.fixed.get(unit, 0):
                raise TraceError(f"no {unit} can be cut: {'; '.join(block.notes)}")
            continue
        if any(i >= site.size for i in indices):
            raise TraceError(f"{block.path} has {site.size} {unit} units, asked to keep number {max(indices)}")
        if len(indices) < site.size:
            result |= dict.fromkeys(site.groups[method], tuple(indices))
    return result


def dim_indices(groups: Groups, dim: Sequence[int], keep: Keep) -> Indices:
    """The entries of a dim that is the product of `dim`'s groups."""
    flat = torch.zeros(1, dtype=torch.long)
    for group in dim:
        chosen = torch.tensor(keep.get(group, range(groups.sizes[group])), dtype=torch.long)
        flat = (flat[:, None] * groups.sizes[group] + chosen[None, :]).flatten()
    return tuple(flat.tolist())


def _tensor_slices(groups: Groups, keep: Keep) -> dict[str, dict[int, Indices]]:
    found: dict[str, dict[int, Indices]] = {}
    for name, dims in groups.tensors.items():
        cut = {place: dim_indices(groups, dim, keep) for place, dim in enumerate(dims) if keep.keys() & set(dim)}
        if cut:
            found[name] = cut
    return found


def _state(block: TracedBlock) -> set[str]:
    return set(block.module.state_dict(keep_vars=True))


def _runs(indices: Indices) -> list[list[int]]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    return runs


def _indices(runs: Iterable[Sequence[int]]) -> Indices:
    return tuple(index for first, last in runs for index in range(first, last))


# --- beside a small model: where it comes from ---


def save_origin(directory: Path, recipe: Recipe, full: Mapping[str, Tensor]) -> None:
    """Keep the recipe of everything cut so far, and the full-shape tensors with the cut parts' last values."""
    origin = directory / "origin"
    origin.mkdir()
    write_state(full, origin)
    shapes = {name: tuple(tensor.shape) for name, tensor in full.items()}
    (origin / "recipe.json").write_text(json.dumps(recipe.to_dict(shapes)))


def read_origin(directory: Path) -> tuple[Recipe, dict[str, Tensor]]:
    """What `save_origin` kept."""
    recipe = Recipe.from_dict(json.loads((directory / "origin" / "recipe.json").read_text()))
    return recipe, read_state(directory / "origin")
