"""Least squares over a projection's columns: the closed forms against what the data itself says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.masks import least_squares
from sprunec.masks.least_squares import DAMP, RIDGES, choose_ridge, refit, removal_errors
from sprunec.masks.symmetric import SecondMoment
from tests.helpers.one_by_one import refit_at_once, refitted_error, remove_one_by_one

HARDLY = 1e-9


@pytest.fixture(autouse=True)
def hardly_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "DAMP", HARDLY)


def data(columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (T, C) that depend on each other, their second moment, and a weight (O, C)."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.double)
    inputs = torch.randn(200, columns, generator=draw, dtype=torch.double) @ mix
    return inputs, inputs.T @ inputs / 200, torch.randn(5, columns, generator=draw, dtype=torch.double)


def best_fit(inputs: Tensor, wanted: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """By the data: the weight (O, K), and the mean square error summed over outputs."""
    fitted = torch.linalg.lstsq(inputs[:, kept], wanted).solution
    return fitted.T, float((inputs[:, kept] @ fitted - wanted).square().sum() / len(inputs))


def test_refit_is_the_least_squares_solution_on_the_data() -> None:
    inputs, moment, weight = data(8)
    kept = [0, 3, 4, 7]
    wanted, _ = best_fit(inputs, inputs @ weight.T, kept)
    assert torch.allclose(refit(SecondMoment.of(moment), weight, torch.tensor(kept), ridge=HARDLY), wanted, atol=1e-6)


def test_a_ridge_draws_to_the_old_weight() -> None:
    """By the data: more rows, whose inputs are one feature each and whose output is what the old weight gives."""
    inputs, moment, weight = data(8)
    kept, ridge = [0, 3, 4, 7], 0.3
    strength = (200 * ridge * moment.diagonal().mean()).sqrt()
    more, rows = strength * torch.eye(4, dtype=torch.double), strength * weight[:, kept].T
    wanted = torch.linalg.lstsq(torch.cat([inputs[:, kept], more]), torch.cat([inputs @ weight.T, rows])).solution.T
    assert torch.allclose(refit(SecondMoment.of(moment), weight, torch.tensor(kept), ridge=ridge), wanted, atol=1e-9)


def test_refit_aims_at_what_gated_columns_gave() -> None:
    inputs, moment, weight = data(6)
    gate = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.2, 0.0], dtype=torch.double)
    wanted, _ = best_fit(inputs, (inputs * gate) @ weight.T, [0, 1, 3])
    assert torch.allclose(
        refit(SecondMoment.of(moment), weight, torch.tensor([0, 1, 3]), gate, ridge=HARDLY), wanted, atol=1e-6
    )


def test_columns_whose_gates_are_already_the_mask_keep_their_weights() -> None:
    _, moment, weight = data(6)
    gate = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.double)
    assert torch.allclose(
        refit(SecondMoment.of(moment), weight, torch.tensor([0, 2, 3]), gate, ridge=HARDLY),
        weight[:, [0, 2, 3]],
        atol=1e-6,
    )


def test_the_cheapest_unit_goes_first_and_errors_are_the_datas_own() -> None:
    inputs, moment, weight = data(8, seed=1)
    units = torch.arange(8).view(4, 2)
    errors = removal_errors(moment, weight, units)
    first = int(errors.argmin())
    alone = {
        unit: best_fit(inputs, inputs @ weight.T, [c for c in range(8) if c not in units[unit].tolist()])[1]
        for unit in range(4)
    }
    assert first == min(alone, key=lambda unit: alone[unit])
    assert float(errors[first]) == pytest.approx(alone[first], rel=1e-4)


def test_removal_goes_on_from_refitted_weights() -> None:
    inputs, moment, weight = data(6, seed=2)
    order = removal_errors(moment, weight, torch.arange(6)[:, None]).argsort().tolist()
    gone = set(order[:2])
    kept = [c for c in range(6) if c not in gone]
    _, error = best_fit(inputs, inputs @ weight.T, kept)
    one = best_fit(inputs, inputs @ weight.T, [c for c in range(6) if c != order[0]])[1]
    second = removal_errors(moment, weight, torch.arange(6)[:, None])[order[1]]
    assert float(second) == pytest.approx(max(one, error - one), rel=1e-4)


def test_a_column_that_another_repeats_costs_nothing() -> None:
    _, moment, weight = data(5, seed=3)
    repeat = torch.eye(5, dtype=torch.double)
    repeat[4] = repeat[1]
    moment = repeat @ moment @ repeat.T
    errors = removal_errors(moment, weight, torch.arange(5)[:, None])
    assert float(errors[[1, 4]].min()) < 1e-6 * float(errors.sort().values[1])


def test_greedy_removal_is_the_best_of_all_pairs_where_columns_are_apart() -> None:
    _, moment, weight = data(5, seed=4)
    moment = torch.diag(moment.diagonal())
    errors = removal_errors(moment, weight, torch.arange(5)[:, None])
    pairs = {
        pair: float((moment.diagonal() * weight.square().sum(0))[list(pair)].sum())
        for pair in itertools.combinations(range(5), 2)
    }
    assert set(errors.argsort()[:2].tolist()) == set(min(pairs, key=lambda pair: pairs[pair]))


def layer(kind: str, features: int = 600) -> tuple[Tensor, Tensor]:
    """A moment and a weight of 48 outputs, float32: what goes into a projection, of unequal and massive features."""
    draw = torch.Generator().manual_seed(len(kind))
    tokens = features // 4 if "few" in kind else 4 * features
    shared = torch.randn(tokens, 64, generator=draw) @ torch.randn(64, features, generator=draw) / 8
    inputs = (shared + torch.randn(tokens, features, generator=draw)) * torch.randn(features, generator=draw).exp()
    if "massive" in kind:
        inputs[:, :4] *= 100
        inputs[::64, 4:8] += 3000 * torch.randn(4, generator=draw)
    if "repeated" in kind:
        inputs[:, features // 2 :] = inputs[:, : features // 2] + 1e-3 * inputs[:, features // 2 :]
    return inputs.T @ inputs / tokens, torch.randn(48, features, generator=draw)


KINDS = ("many tokens", "few tokens", "massive", "few and massive", "repeated", "few, repeated and massive")


@pytest.fixture
def damped(monkeypatch: pytest.MonkeyPatch, hardly_damped: None) -> None:
    monkeypatch.setattr(least_squares, "DAMP", DAMP)


@pytest.mark.usefixtures("damped")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_lose_the_features_that_one_by_one_loses(kind: str) -> None:
    """In float64 the same in the same order, in float32 sets that are worth the same."""
    moment, weight = layer(kind)
    own = torch.arange(len(moment))[:, None]
    order, costs = remove_one_by_one(moment, weight, own, DAMP)
    exact, errors = removal_errors(moment.double(), weight, own), removal_errors(moment, weight, own)
    rising = costs.cummax(0).values.float()
    assert torch.equal(exact[order].argsort(stable=True), torch.arange(len(order)))
    assert torch.allclose(exact[order], rising, rtol=1e-5, atol=0)
    assert float((errors[order] / rising - 1).abs().median()) < 1e-4
    for share in (0.8, 0.5, 0.2):
        kept = int(share * len(order))
        found, wanted = errors.topk(kept).indices, torch.tensor(order[-kept:])
        assert refitted_error(moment, weight, found, DAMP) <= 1.01 * refitted_error(moment, weight, wanted, DAMP)


@pytest.mark.usefixtures("damped")
@pytest.mark.parametrize("units", [6, 75])
def test_units_of_several_features_go_one_by_one(units: int) -> None:
    moment, weight = layer("few and massive")
    own = torch.arange(len(moment)).view(units, -1)
    order, costs = remove_one_by_one(moment, weight, own, DAMP)
    errors = removal_errors(moment, weight, own)
    assert errors[order].argsort(stable=True).tolist() == list(range(units))
    assert torch.allclose(errors[order], costs.cummax(0).values.float(), rtol=1e-2, atol=0)


@pytest.mark.usefixtures("damped")
def test_errors_go_to_units_wherever_their_features_are() -> None:
    moment, weight = layer("massive")
    mixed = torch.randperm(len(moment), generator=torch.Generator().manual_seed(0))
    errors = removal_errors(moment, weight, torch.arange(len(moment))[:, None])
    assert torch.equal(removal_errors(moment, weight, mixed[:, None]), errors[mixed])


@pytest.mark.usefixtures("damped")
def test_neither_moment_nor_weight_is_changed() -> None:
    moment, weight = layer("few tokens", 300)
    given = moment.clone(), weight.clone()
    removal_errors(moment, weight, torch.arange(300)[:, None])
    removal_errors(moment, weight, torch.arange(300).view(30, 10))
    refit(SecondMoment.of(moment), weight, torch.arange(0, 300, 2), ridge=0.1)
    assert torch.equal(moment, given[0])
    assert torch.equal(weight, given[1])


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_refit_is_the_plain_solution(kind: str, ridge: float) -> None:
    moment, weight = layer(kind)
    kept = torch.arange(0, 600, 3)
    plain = refit_at_once(moment, weight, kept, ridge=ridge).float()
    assert torch.allclose(refit(SecondMoment.of(moment), weight, kept, ridge=ridge), plain, rtol=1e-5, atol=1e-6)


def test_a_ridge_below_the_rounding_of_the_moment_is_raised() -> None:
    moment, weight = layer("few, repeated and massive")
    kept = torch.arange(0, 600, 2)
    matrix = moment[kept][:, kept].double() + 1e-30 * torch.eye(300, dtype=torch.double)
    assert int(torch.linalg.cholesky_ex(matrix).info) > 0
    apart = refitted_error(moment, weight, kept, 0.1)
    found = weight.index_add(1, kept, refit(SecondMoment.of(moment), weight, kept, ridge=1e-30), alpha=-1).double()
    assert 0 < float(((found @ moment.double()) * found).sum()) <= apart


def split(tokens: int, gap: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A moment of so many tokens, 400 others, a weight, and features kept; features have half their energy alone."""
    draw = torch.Generator().manual_seed(tokens)
    mix = torch.randn(24, 200, generator=draw) / 24**0.5
    inputs = torch.randn(tokens + 400, 24, generator=draw) @ mix + gap * torch.randn(tokens + 400, 200, generator=draw)
    seen, unseen = inputs[:tokens], inputs[tokens:]
    return seen.T @ seen / tokens, unseen, torch.randn(48, 200, generator=draw), torch.arange(0, 200, 2)


@pytest.mark.parametrize("tokens", [30, 100, 300, 1000, 20_000])
@pytest.mark.parametrize("gated", [False, True])
def test_the_ridge_is_the_one_that_errs_least_on_unseen_inputs(tokens: int, gated: bool) -> None:
    """All ridges are tried, on normal equations in float64, by the moment of what is unseen."""
    moment, unseen, weight, kept = split(tokens)
    gate = torch.linspace(0, 1, 200).index_fill(0, kept, 1.0) if gated else None
    wanted = (weight if gate is None else weight * gate).double()
    errors, exact, square = list[float](), moment.double(), (unseen.double().T @ unseen.double()) / len(unseen)
    for ridge in RIDGES:
        apart = wanted.clone()
        damped = exact + ridge * exact.diagonal().mean() * torch.eye(200, dtype=torch.double)
        apart[:, kept] -= torch.linalg.solve(damped[kept][:, kept], damped[kept] @ wanted.T).T
        errors.append(float(((apart @ square) * apart).sum()))
    best = RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]
    assert choose_ridge(SecondMoment.of(moment), list(unseen.split(90)), weight, kept, gate) == best


def test_few_tokens_choose_a_larger_ridge_than_many() -> None:
    chosen = []
    for tokens in (30, 300, 20_000):
        moment, unseen, weight, kept = split(tokens)
        chosen.append(choose_ridge(SecondMoment.of(moment), [unseen], weight, kept))
    assert chosen[0] > chosen[1] > chosen[2]


def test_sums_of_many_outputs_choose_as_all_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, unseen, weight, kept = split(300)
    weight = torch.randn(600, 200, generator=torch.Generator().manual_seed(0))
    whole = choose_ridge(SecondMoment.of(moment), [unseen], weight, kept)
    monkeypatch.setattr(least_squares, "MANY", 500)
    assert choose_ridge(SecondMoment.of(moment), [unseen], weight, kept) == whole


def test_a_moment_that_is_not_finite_is_refused() -> None:
    moment, weight = layer("many tokens", 8)
    moment[3, 3] = torch.inf
    for work in (
        lambda: refit(SecondMoment.of(moment), weight, torch.tensor([0, 1]), ridge=0.1),
        lambda: removal_errors(moment, weight, torch.arange(8)[:, None]),
    ):
        with pytest.raises(PassError, match="not finite"):
            work()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("width", "units", "outputs", "dtype"),
    [(1536, 4, 3072, torch.float32), (1536, 6, 1024, torch.float64), (384, 384, 256, torch.float32)],
)
def test_units_are_removed_alike_by_any_number_of_threads(
    width: int, units: int, outputs: int, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    """With two, MKL's general solver has failed on stacks of matrices as large as those of the first."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, width, generator=draw).to(dtype)
    weight, features = torch.randn(outputs, width, generator=draw).to(dtype), torch.arange(width).view(units, -1)
    found = list[Tensor]()
    for count in (1, 2):
        threads(count)
        found.append(removal_errors(inputs.T @ inputs / 1000 + 0.01 * torch.eye(width, dtype=dtype), weight, features))
    assert torch.allclose(*found, rtol=1e-3) and float(found[0].min()) > 0


def test_weights_are_refitted_alike_by_any_number_of_threads(threads: Callable[[int], None]) -> None:
    draw, found = torch.Generator().manual_seed(0), list[Tensor]()
    inputs, weight = torch.randn(1000, 1536, generator=draw), torch.randn(768, 1536, generator=draw)
    for count in (1, 2):
        threads(count)
        found.append(refit(SecondMoment.of(inputs.T @ inputs / 1000), weight, torch.arange(0, 1536, 2), ridge=0.1))
    assert torch.allclose(*found, atol=1e-4)
