"""A recipe applied from file to file: tensors of any size go through in chunks of rows.

What is held at a time is the part of one tensor that a chunk is cut from, and the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output, as_output, read_rows
from sprunec.rewrite.recipe import Recipe
from sprunec.rewrite.slices import Selection
from sprunec.units import Indices


def cut_outputs(recipe: Recipe, tensors: Tensors) -> dict[str, Output]:
    """Give what `recipe.cut` gives of tensors in a file, to be written while it is cut."""
    return {name: _cut(name, tensors, recipe.slices.get(name, {})) for name in tensors if name not in recipe.removed}


def _cut(name: str, tensors: Tensors, dims: Mapping[int, Indices]) -> Output:
    whole = tensors.shape(name)

    def parts() -> Iterator[Tensor]:
        others = [(dim, Selection.of(kept, whole[dim])) for dim, kept in dims.items() if dim != 0]
        for part in read_rows(tensors, name, dims.get(0)):
            for dim, selection in others:
                part = selection(part, dim)
            yield part

    shape = tuple(len(dims[dim]) if dim in dims else size for dim, size in enumerate(whole))
    return Output(shape, tensors.dtype(name), parts)


def expand_outputs(recipe: Recipe, full: Tensors, small: Tensors) -> dict[str, Output]:
    """Give what `recipe.expand` gives of tensors in files, one tensor at a time."""
    return {name: _expanded(recipe, name, full, small) for name in full}


def _expanded(recipe: Recipe, name: str, full: Tensors, small: Tensors) -> Output:
    if name not in small or name not in recipe.slices:
        return as_output(small if name in small else full, name)

    dtype = torch.promote_types(full.dtype(name), small.dtype(name))

    def parts() -> Iterator[Tensor]:
        whole = full.copy(name).to(dtype)
        recipe.put_back(name, whole, small[name])
        yield whole

    return Output(full.shape(name), dtype, parts)
