"""Solutions of the integer program: what brute force finds, within all limits to the last parameter, and the rules."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest

from sprunec.errors import PassError
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.search import costs as measures
from sprunec.plan.search.choices import Choice, choices, chosen
from sprunec.plan.search.costs import costs
from sprunec.plan.search.solve import Limit, Program, Rules, Solution
from tests.plan.search.test_choices import LLAMA

CONFIG = TransformersConfig.from_source(LLAMA | {"num_hidden_layers": 3})


def program(seed: int, units: Sequence[str], share: float = 0.7, rules: Rules = Rules()) -> Program:  # noqa: B008
    """Draw damages that grow with what goes, of a model's parameters and its cache at most a share."""
    draw, found = random.Random(seed), choices(CONFIG, units, {"dim_ff": [16, 32, 48]})
    limits, damages = [], []
    for name, measure in (("parameters", measures.parameters), ("cache", measures.cache_bytes(2, 50))):
        each = costs(CONFIG, found, measure)
        most = math.floor(each.base + share * (measure(CONFIG) - each.base))
        limits.append(Limit(name, most, each.base, each.each))
    for choice in found:
        less = 1 - sum(choice.kept.values()) / sum(CONFIG.layers[0].counts[unit] for unit in choice.kept or {"head": 1})
        damages.append(0.0 if choice.is_dense(CONFIG) else draw.uniform(0.5, 1.5) * (less or 1.0) ** 2)
    return Program(found, damages, limits, rules)


def every(given: Program) -> Iterator[tuple[int, ...]]:
    """Go through all that could be a solution, whatever its limits."""
    layers = []
    for layer in range(len(CONFIG.layers)):
        here = {
            kind: [n for n, c in enumerate(given.choices) if (c.layer, c.sublayer) == (layer, kind)]
            for kind in ("attention", "feed_forward", "block")
        }
        gone = here.pop("block")
        layers.append([*product(*here.values()), *((number,) for number in gone)])
    for each in product(*layers):
        yield tuple(number for numbers in each for number in numbers)


def keeps_rules(given: Program, taken: Sequence[int]) -> bool:
    rules, there = given.rules, [given.choices[number] for number in taken]
    absent = sum(0 if c.kept else 2 if c.sublayer == "block" else 1 for c in there)
    sizes = [
        {str(sorted(c.kept.items())) for c in there if c.sublayer == kind} for kind in ("attention", "feed_forward")
    ]
    heads = {c.kept["head"] for c in there if "head" in c.kept}
    uniform = max(map(len, sizes)) <= 1 and not any(not c.kept and c.sublayer != "block" for c in there)
    most = math.inf if rules.most_absent is None else rules.most_absent
    return (
        rules.least_absent <= absent <= most
        and (uniform or not rules.uniform)
        and (len(heads) <= 1 or not rules.same_heads)
    )


def least(given: Program) -> float | None:
    allowed = (t for t in every(given) if keeps_rules(given, t) and not any(x.excess(t) for x in given.limits))
    return min((math.fsum(given.damages[n] for n in taken) for taken in allowed), default=None)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(uniform=True),
        Rules(same_heads=True),
        Rules(most_absent=0),
        Rules(most_absent=2),
        Rules(least_absent=1),
    ],
    ids=["free", "uniform", "heads", "none-absent", "two-absent", "one-absent"],
)
@pytest.mark.parametrize(
    "units", [("kv_group", "dim_ff"), ("head", "layer"), ("kv_group", "dim_ff", "block")], ids=" ".join
)
def test_it_is_what_brute_force_finds(units: tuple[str, ...], rules: Rules, share: float) -> None:
    given = program(7, units, share, rules)
    found, expected = given.solve(), least(given)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.damage == pytest.approx(expected, rel=1e-9)
    assert (found.gap, [limit.excess(found.taken) for limit in given.limits]) == (0.0, [0.0, 0.0])
    assert keeps_rules(given, found.taken)
    cut = chosen(CONFIG, [given.choices[number] for number in found.taken])
    assert given.limits[0].of(found.taken) == cut.parameters()


def test_a_limit_is_kept_to_the_last_parameter() -> None:
    given = program(3, ("kv_group", "dim_ff"))
    found = given.solve()
    assert found is not None
    exactly = given.limits[0].of(found.taken)
    for most, same in ((exactly, True), (exactly - 1, False)):
        again = replace(given, limits=[replace(given.limits[0], most=most), given.limits[1]]).solve()
        assert again is not None and (again.taken == found.taken) == same
        assert given.limits[0].of(again.taken) <= most


def test_an_infinite_damage_is_never_taken() -> None:
    given = program(1, ("layer",), rules=Rules(least_absent=1))
    given = replace(given, limits=[])
    absent = [number for number, choice in enumerate(given.choices) if not choice.kept]
    damages = [math.inf if number in absent[1:] else damage for number, damage in enumerate(given.damages)]
    found = replace(given, damages=damages).solve()
    assert found is not None and absent[0] in found.taken


def test_a_block_that_can_only_be_absent_is_taken_so() -> None:
    choices = [
        Choice(0, "block", {}),
        Choice(1, "feed_forward", {"dim_ff": 64}),
        Choice(1, "feed_forward", {"dim_ff": 8}),
    ]
    found = Program(choices, [0.0, 1.0, -1.0], [Limit("parameters", 9, 0, [0, 9, 1])]).solve()
    assert found is not None and found.taken == (0, 2) and found.damage == -1.0


def test_finalists_differ_and_one_removes_what_the_best_does_not() -> None:
    given = program(5, ("dim_ff", "feed_forward"), share=0.9)
    given = replace(given, limits=given.limits[:1])
    found = given.finalists(4)
    assert len({each.taken for each in found}) == 4
    assert found[0] == given.solve()
    removed = [any(not given.choices[number].kept for number in each.taken) for each in found]
    assert removed[0] != removed[1]
    assert all(not limit.excess(each.taken) for each in found for limit in given.limits)
    assert given.finalists(1) == found[:1]


def test_a_solution_with_none_absent_stays_so() -> None:
    given = program(5, ("dim_ff", "feed_forward"), share=0.9, rules=Rules(most_absent=0))
    given = replace(given, limits=given.limits[:1])
    assert all(given.choices[number].kept for each in given.finalists(3) for number in each.taken)


def test_what_cannot_be_says_the_least() -> None:
    given = program(2, ("dim_ff",), share=0.5)
    lowest = min(sum(given.limits[0].costs[n] for n in taken) for taken in every(given)) + given.limits[0].base
    given = replace(given, limits=[replace(given.limits[0], most=lowest - 1)])
    with pytest.raises(PassError, match=f"parameters: {lowest - 1:,} asked for, and {lowest:,} is the least possible"):
        given.finalists(1)


def test_limits_that_exclude_each_other() -> None:
    """Each can be met alone, and what the first leaves is too much for the second."""
    found = [Choice(0, kind, {"dim_ff": n}) for kind in ("attention", "feed_forward") for n in (2, 1)]
    limits = [Limit("first", 5, 0, (4, 1, 4, 4)), Limit("second", 5, 0, (1, 4, 4, 4))]
    with pytest.raises(PassError, match="first and second cannot be met together"):
        Program(found, [0.0, 1.0, 0.0, 1.0], limits).finalists(1)


def test_rules_that_leave_nothing() -> None:
    given = program(2, ("dim_ff",), rules=Rules(least_absent=1))
    with pytest.raises(PassError, match="the rules of this search leave no solution"):
        given.finalists(1)


def blocks(count: int, sizes: int, seed: int) -> Program:
    """Draw a large model's damages, smooth in the size; two limits, parameters and what only attention has."""
    draw, found, damages = random.Random(seed), list[Choice](), list[float]()
    for layer in range(count):
        for kind, unit in (("attention", "kv_group"), ("feed_forward", "dim_ff")):
            scale, power = math.exp(draw.gauss(0, 1)), draw.uniform(1.5, 3)
            for left in range(sizes, 0, -1):
                found.append(Choice(layer, kind, {unit: left * (1 if unit == "kv_group" else 1792)}))
                damages.append(0.01 * scale * (1 - left / sizes) ** power * math.exp(draw.gauss(0, 0.02)))
    parameters = [sum(n * (2_621_440 if unit == "kv_group" else 12_288) for unit, n in c.kept.items()) for c in found]
    cached = [c.kept.get("kv_group", 0) for c in found]
    most = [0.7 * sum(costs[::sizes]) for costs in (parameters, cached)]
    return Program(
        found, damages, [Limit("parameters", int(most[0]), 0, parameters), Limit("cache", most[1], 0, cached)]
    )


@pytest.mark.parametrize("limits", [1, 2])
def test_eighty_blocks_of_sixteen_sizes_take_seconds(limits: int) -> None:
    given = blocks(80, 16, seed=limits)
    given = replace(given, limits=given.limits[:limits])
    start = time.process_time()
    found = given.solve()
    assert isinstance(found, Solution) and found.gap == 0.0
    assert time.process_time() - start < 5
