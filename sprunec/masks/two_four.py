"""2:4 sparsity: of every four weights along a row two stay (Mishra et al. 2021). Which ones, and whether a mask has it.

    m4n2_1d    the two largest of every four along the input dim, which is the second one of a matrix unless it is said
               to be the first; of equals the first
    m4n2_2d    of every 4 x 4 tile two in each row and in each column, so that the transpose is 2:4 as well
               (Hubara et al. 2021): of the 90 such patterns the one with the largest sum of sizes, of equals the first

A pattern is a set of bool masks by tensor name; True stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor

from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.writer import save_tensors
from sprunec.errors import InputError
from sprunec.plan.named_tensors import GROUP, uneven

KEPT = 2
LEAST_IN_A_TILE = 7  # a greedy choice, as BMCook's, can end with one place that nothing may take any more
CHUNK = 2**20
PATTERN = "pattern.safetensors"  # beside the weights of a model

Pattern = dict[str, Tensor]


def save_pattern(directory: Path, pattern: Pattern) -> None:
    save_tensors(pattern, directory / PATTERN)


def load_pattern(directory: Path) -> Pattern:
    """Load the pattern of a model directory; empty where the model is dense."""
    path = directory / PATTERN
    return read_state(path) if path.exists() else {}


def choose(pattern: str, name: str, weight: Tensor, *, input_first: bool = False) -> Tensor:
    """The mask (rows, columns) of a weight of that shape.

    Args:
        input_first: the weight is (input, output); groups run along the input dim of any.

    Raises:
        InputError: a width is no multiple of four, or the weight holds NaN or infinity; names the tensor.
    """
    refuse_uneven(pattern, name, tuple(weight.shape), input_first=input_first)
    if not bool(torch.isfinite(weight).all()):
        raise InputError.at(name, "holds NaN or infinite weights", "give a checkpoint of a model that has not diverged")
    weight = weight.T if input_first else weight
    mask = torch.empty(weight.shape, dtype=torch.bool)
    rows = max(CHUNK // weight.size(1) // GROUP, 1) * GROUP
    for part, out in zip(weight.detach().cpu().split(rows), mask.split(rows), strict=True):
        out.copy_(_largest_of_four(part) if pattern == "m4n2_1d" else _best_tiles(part))
    return mask.T.contiguous() if input_first else mask


def refuse_uneven(pattern: str, name: str, shape: tuple[int, ...], *, input_first: bool = False) -> None:
    """Raises InputError for a width that does not part into fours."""
    if (size := uneven(pattern, shape, input_first=input_first)) is not None:
        message = f"is {list(shape)}, and {size} is not a multiple of {GROUP}: it has no {pattern} pattern"
        raise InputError.at(name, message, f"cut to multiples of {GROUP}, or leave it out of the pass's tensors")


def _largest_of_four(weight: Tensor) -> Tensor:
    """By pairwise comparison, which is exact; sums of pairs would round."""
    size = weight.abs().unflatten(1, (-1, GROUP))
    beaten = torch.zeros(size.shape, dtype=torch.int8)
    for first, second in combinations(range(GROUP), 2):
        wins = size[..., first] >= size[..., second]
        beaten[..., second] += wins
        beaten[..., first] += ~wins
    kept: Tensor = beaten < KEPT
    return kept.flatten(1)


def _best_tiles(weight: Tensor) -> Tensor:
    """In float64, whose sums of eight narrower numbers are exact or nearly so, whatever the order of adding."""
    tiles = _tiled(weight.abs().double()).flatten(2)
    best = (tiles @ tile_patterns().double().T).argmax(-1)
    mask: Tensor = tile_patterns()[best].unflatten(-1, (GROUP, GROUP)).transpose(1, 2).reshape(weight.shape)
    return mask


def _tiled(matrix: Tensor) -> Tensor:
    """(rows, columns) -> (rows / 4, columns / 4, 4, 4)."""
    tiles: Tensor = matrix.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP)).transpose(1, 2)
    return tiles


@cache
def tile_patterns() -> Tensor:
    """(90, 16) bool: every 4 x 4 tile with two in each row and in each column."""
    rows = [[float(i in pair) for i in range(GROUP)] for pair in combinations(range(GROUP), KEPT)]
    tiles = torch.tensor(list(product(rows, repeat=GROUP)))
    return tiles[(tiles.sum(1) == KEPT).all(1)].bool().flatten(1)


def violation(pattern: str, mask: Tensor, *, input_first: bool = False) -> str | None:
    """Where a mask of even widths breaks the pattern, in words; None where it holds.

    A tile may keep one weight less than it could: greedy choices do.
    """
    mask = mask.T if input_first else mask
    rows = mask.unflatten(1, (-1, GROUP)).sum(2, dtype=torch.uint8)
    tests = [(rows > KEPT if pattern == "m4n2_2d" else rows != KEPT, rows, f"of {GROUP} weights", 1, GROUP)]
    if pattern == "m4n2_2d":
        columns = mask.unflatten(0, (-1, GROUP)).sum(1, dtype=torch.uint8)
        tiles = rows.unflatten(0, (-1, GROUP)).sum(1, dtype=torch.uint8)
        tests.append((columns > KEPT, columns, f"of {GROUP} weights in a column", GROUP, 1))
        tests.append((tiles < LEAST_IN_A_TILE, tiles, f"of the {GROUP * GROUP} weights of a tile", GROUP, GROUP))
    for bad, counts, of_what, height, width in tests:
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            start = (row * height, column * width)[:: -1 if input_first else 1]
            return f"{int(counts[row, column])} {of_what} from row {start[0]}, column {start[1]}"
    return None


def short_tiles(mask: Tensor) -> int:
    """How many tiles keep fewer than their eight."""
    return int((_tiled(mask).flatten(2).sum(2, dtype=torch.uint8) < GROUP * KEPT).sum())


def density(state: Mapping[str, Tensor], pattern: Pattern) -> float:
    """The share of the pattern's tensors that is not zero."""
    total = sum(mask.numel() for mask in pattern.values())
    return sum(int(state[name].count_nonzero()) for name in pattern) / max(total, 1)


def leaks(state: Mapping[str, Tensor], pattern: Pattern) -> list[str]:
    """The tensors that are not exactly zero where their mask says so."""
    return [name for name, mask in pattern.items() if bool(state[name][~mask.to(state[name].device)].any())]
