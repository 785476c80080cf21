"""2:4 patterns: the best one, found against brute force, whatever the numbers are."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from sprunec.errors import InputError
from sprunec.masks import two_four
from sprunec.masks.two_four import choose, density, leaks, short_tiles, tile_patterns, violation

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def weights(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kept_size(weight: Tensor, mask: Tensor) -> float:
    return float((weight.abs() * mask).double().sum())


def all_tiles() -> list[Tensor]:
    """Every 4 x 4 tile with two in each row and column, built without the code under test."""
    rows = [[int(i in pair) for i in range(4)] for pair in combinations(range(4), 2)]
    tiles = (torch.tensor(tile) for tile in product(rows, repeat=4))
    return [tile for tile in tiles if tile.sum(0).tolist() == [2, 2, 2, 2]]


def greedy(tile: Tensor) -> Tensor:
    """From the largest down, as long as row and column have room: what BMCook does."""
    mask = torch.zeros(4, 4, dtype=torch.bool)
    for place in tile.abs().flatten().argsort(descending=True).tolist():
        row, column = divmod(place, 4)
        if mask[row].sum() < 2 and mask[:, column].sum() < 2:
            mask[row, column] = True
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_of_six_pairs_stays_in_every_group(dtype: torch.dtype) -> None:
    weight = weights(40, 24, dtype=dtype)
    mask = choose("m4n2_1d", "w", weight)
    assert int(mask.sum()) * 2 == weight.numel()
    for group, kept in zip(weight.reshape(-1, 4), mask.reshape(-1, 4), strict=True):
        best = max(float(group[list(pair)].double().abs().sum()) for pair in combinations(range(4), 2))
        assert int(kept.sum()) == 2
        assert float(group[kept].double().abs().sum()) == best


def test_a_hair_of_difference_is_not_rounded_away() -> None:
    """1e8 + 1 and 1e8 + 2 are one number in float32: the pairs' sums cannot tell them apart."""
    assert choose("m4n2_1d", "w", torch.tensor([[1.0, 1e8, 0.5, 2.0]])).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("tie", [[3, 3, 3, 3], [0, 0, 0, 0], [1, -1, 1, 0]])
def test_of_equal_weights_the_first_stay(tie: list[float]) -> None:
    assert choose("m4n2_1d", "w", torch.tensor([tie]).float()).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_of_ninety_tiles_stays(dtype: torch.dtype) -> None:
    tiles = all_tiles()
    assert len(tiles) == len(tile_patterns()) == 90
    weight = weights(16, 24, 1, dtype)
    mask = choose("m4n2_2d", "w", weight)
    for row, column in product(range(0, 16, 4), range(0, 24, 4)):
        part = weight[row : row + 4, column : column + 4].double().abs()
        kept = mask[row : row + 4, column : column + 4]
        assert float((part * kept).sum()) == max(float((part * tile).sum()) for tile in tiles)


def test_sums_of_a_tile_do_not_round() -> None:
    """Weights of 2^23 and 2^23 + 1 differ in float32; sums of eight of them would not."""
    extra = torch.randint(0, 2, (8, 16), generator=torch.Generator().manual_seed(3)).double()
    mask = choose("m4n2_2d", "w", (extra + 2**23).float())
    for row, column in product((0, 4), range(0, 16, 4)):
        part = extra[row : row + 4, column : column + 4]
        most = max(float((part * tile).sum()) for tile in all_tiles())
        assert float((part * mask[row : row + 4, column : column + 4]).sum()) == most


def test_tiles_keep_eight_of_sixteen_also_transposed_and_more_than_a_greedy_choice() -> None:
    weight = weights(64, 64, 2)
    mask = choose("m4n2_2d", "w", weight)
    assert int(mask.sum()) * 2 == weight.numel()
    assert short_tiles(mask) == 0
    for pattern in ("m4n2_1d", "m4n2_2d"):
        assert violation(pattern, mask) is None
        assert violation(pattern, mask.T.contiguous()) is None
    rows = [torch.cat([greedy(tile) for tile in strip.split(4, 1)], 1) for strip in weight.split(4)]
    simple = torch.cat(rows)
    assert kept_size(weight, mask) > kept_size(weight, simple)
    assert 0 < short_tiles(simple) < 64
    assert violation("m4n2_2d", simple) is None  # files of greedy masks are good ones
    assert "1 of 4 weights" in str(violation("m4n2_1d", simple))


@pytest.mark.parametrize("pattern", ["m4n2_1d", "m4n2_2d"])
def test_working_in_parts_changes_nothing(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(36, 20, 3)
    whole = choose(pattern, "w", weight)
    monkeypatch.setattr(two_four, "CHUNK", 150)
    assert torch.equal(choose(pattern, "w", weight), whole)
    assert torch.equal(choose(pattern, "w", weight.T.contiguous().T), whole)


@pytest.mark.parametrize(
    ("pattern", "shape", "size"),
    [("m4n2_1d", (64, 350), 350), ("m4n2_2d", (350, 64), 350), ("m4n2_2d", (64, 3735), 3735)],
)
def test_uneven_widths_are_refused_by_name_and_shape(pattern: str, shape: tuple[int, int], size: int) -> None:
    with pytest.raises(InputError, match=rf"w_out.*is \[{shape[0]}, {shape[1]}\], and {size} is not a multiple of 4"):
        choose(pattern, "w_out", torch.zeros(shape))


def test_uneven_rows_do_not_matter_along_the_input_dim() -> None:
    assert int(choose("m4n2_1d", "w", weights(7, 8)).sum()) == 28


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_weight_has_no_best_pattern(value: float) -> None:
    weight = weights(4, 8)
    weight[2, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        choose("m4n2_2d", "w", weight)


@pytest.mark.parametrize(
    ("pattern", "place", "kept", "words"),
    [
        ("m4n2_1d", (5, 10), True, "3 of 4 weights from row 5, column 8"),
        ("m4n2_1d", (6, 6), False, "1 of 4 weights from row 6, column 4"),
        ("m4n2_2d", (5, 10), True, "3 of 4 weights from row 5, column 8"),
    ],
)
def test_a_wrong_group_is_found_where_it_is(pattern: str, place: tuple[int, int], kept: bool, words: str) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool().repeat(2, 3)
    assert violation(pattern, mask) is None
    mask[place] = kept
    assert violation(pattern, mask) == words


def test_a_full_column_and_an_empty_tile_are_no_tiles() -> None:
    column = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]]).bool()
    assert violation("m4n2_2d", column) == "3 of 4 weights in a column from row 0, column 0"
    empty = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    assert violation("m4n2_2d", empty) == "6 of the 16 weights of a tile from row 0, column 0"


def test_leaks_and_density_look_at_the_weights_themselves() -> None:
    weight = weights(4, 8)
    pattern = {"w": choose("m4n2_1d", "w", weight)}
    assert leaks({"w": weight}, pattern) == ["w"]
    sparse = {"w": weight * pattern["w"], "other": weight}
    assert leaks(sparse, pattern) == []
    assert density(sparse, pattern) == 0.5
    sparse["w"][pattern["w"].logical_not().nonzero()[0].tolist()[0], :] = 1e-30
    assert leaks(sparse, pattern) == ["w"]
    assert density(sparse, pattern) > 0.5
