"""A rewrite as data: which indices every tensor keeps.

A recipe knows no module and no graph. It cuts a live model's tensors, a checkpoint's, or an optimizer's moments alike;
two recipes in a row are one; and it puts a small model's tensors back into the shape they were cut from.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors, open_tensors, runs
from sprunec.durable import read_file, write_new
from sprunec.errors import TraceError
from sprunec.rewrite.keep import dim_indices, is_cut, keeps
from sprunec.rewrite.program import Program, Residual, dead_tensors
from sprunec.rewrite.slices import select
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut, Indices


@dataclass(frozen=True)
class Recipe:
    """What is kept: by tensor name and dim; tensors not named stay whole, tensors in `removed` go."""

    slices: Mapping[str, Mapping[int, Indices]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut out the kept parts, as new contiguous tensors; whole tensors are passed on as they are."""
        found = {name: tensor for name, tensor in tensors.items() if name not in self.removed}
        for name in found.keys() & self.slices.keys():
            for dim, kept in self.slices[name].items():
                found[name] = select(found[name], dim, kept)
        return found

    def expand(self, full: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the small model's tensors back where they were cut from; cut parts keep what `full` has.

        Tensors are of the wider type of both, so that neither is rounded.
        """
        found = {**full, **small}
        for name in small.keys() & self.slices.keys():
            found[name] = full[name].to(torch.promote_types(full[name].dtype, small[name].dtype), copy=True)
            self.put_back(name, found[name], small[name])
        return found

    def put_back(self, name: str, full: Tensor, small: Tensor) -> None:
        """Write what is left of a tensor that was cut into its full shape, in place."""
        _put_back(full, small.to(full.dtype), sorted(self.slices[name].items()))

    def then(self, later: Recipe) -> Recipe:
        """Make one recipe that does what this and then `later` do."""
        slices = {name: dict(dims) for name, dims in self.slices.items() if name not in later.removed}
        for name, dims in later.slices.items():
            mine = slices.setdefault(name, {})
            for dim, kept in dims.items():
                mine[dim] = tuple(mine[dim][i] for i in kept) if dim in mine else kept
        return Recipe(slices, tuple(dict.fromkeys((*self.removed, *later.removed))))

    def to_dict(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Name every tensor of `shapes`, with the [first, last + 1) runs of indices kept along each cut dim."""
        spans = functools.cache(lambda kept: [list(span) for span in runs(kept)])  # tensors of one site keep the same
        cut = {name: {str(dim): spans(kept) for dim, kept in dims.items()} for name, dims in self.slices.items()}
        left: dict[str, Any] = dict.fromkeys(shapes, "all") | cut | dict.fromkeys(self.removed)
        return {"tensors": {name: {"shape": list(shape), "kept": left[name]} for name, shape in shapes.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        entries = data["tensors"].items()
        slices = {
            name: {int(dim): tuple(chain(*starmap(range, spans))) for dim, spans in entry["kept"].items()}
            for name, entry in entries
            if isinstance(entry["kept"], dict)
        }
        return cls(slices, tuple(name for name, entry in entries if entry["kept"] is None))


def make_recipe(blocks: Iterable[TracedBlock], kept: Cut) -> Recipe:
    """Make the recipe that leaves `kept` of the traced blocks.

    Raises:
        TraceError: something is to be cut where the trace found no site for it.
    """
    slices: dict[str, dict[int, Indices]] = {}
    removed: list[str] = []
    for block in blocks:
        program, prefix = block.forward, f"{block.path}."
        gone = dead_tensors(program, absent(block, program, kept))
        removed += sorted(prefix + name for name in gone)
        state = set(block.module.state_dict(keep_vars=True)) - gone
        groups, keep = program.groups, keeps(block, kept, "forward")
        indices = functools.cache(functools.partial(dim_indices, groups, keep=keep))
        for name, dims in groups.tensors.items():
            cut = {place: indices(dim) for place, dim in enumerate(dims) if is_cut(groups, dim, keep)}
            if cut and name in state:
                slices[prefix + name] = cut
    return Recipe(slices, tuple(removed))


def absent(block: TracedBlock, program: Program, kept: Cut) -> tuple[Residual, ...]:
    """List the residuals of one of the block's programs whose sublayers `kept` leaves out.

    Raises:
        TraceError: the program has other sublayers than the plain forward.
    """
    wanted = [residual.kind for residual in block.forward.residuals if not kept.has(block.index, residual.kind)]
    found = tuple(residual for residual in program.residuals if not kept.has(block.index, residual.kind))
    if [residual.kind for residual in found] != wanted:
        raise TraceError(f"{block.path}: its cached forward does not add {' and '.join(wanted)} as its forward does")
    return found


def _put_back(full: Tensor, small: Tensor, dims: Sequence[tuple[int, Indices]]) -> None:
    """Write `small` into the entries of `full` that `dims` keep, in place."""
    (dim, kept), *rest = dims
    index = torch.tensor(kept, dtype=torch.long, device=full.device)
    if rest:
        part = full.index_select(dim, index)
        _put_back(part, small, rest)
        small = part
    full.index_copy_(dim, index, small)


# --- beside a small model: where it comes from ---


def save_recipe(directory: Path, recipe: Recipe, shapes: Mapping[str, Sequence[int]]) -> Path:
    """Write the recipe of everything cut so far; returns the directory for the full-shape tensors."""
    origin = directory / "origin"
    origin.mkdir()
    write_new(origin / "recipe.json", json.dumps(recipe.to_dict(shapes)))
    return origin


def read_origin(directory: Path) -> tuple[Recipe, Tensors]:
    """Read a recipe, and the full-shape tensors with the cut parts' last values."""
    document = json.loads(read_file(directory / "origin" / "recipe.json"))
    return Recipe.from_dict(document), open_tensors(directory / "origin").only(document["tensors"])
