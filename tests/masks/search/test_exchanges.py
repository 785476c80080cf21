"""What choices change of a cut model is what whole models in memory say of them, and smaller steps foretell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sprunec.checkpoint.writer import as_outputs
from sprunec.engines.checkpoints import Saves
from sprunec.families.base_config import everything
from sprunec.families.model_directory import open_model_tensors, read_config, save_outputs
from sprunec.masks.search.damages_file import Damages, load_damages
from sprunec.masks.search.members import members
from sprunec.passes.searching import score_exchanges
from sprunec.passes.searching.score_exchanges import ExchangeOptions
from sprunec.plan.search.choices import Choice
from sprunec.plan.search.local_search import near, taken_by
from sprunec.units import Kept
from tests.helpers.choices import OPTIONS, REFITTED, GivenJob
from tests.helpers.naive_choices import NAMES, batches
from tests.helpers.naive_exchanges import NaiveExchanges
from tests.masks.search.test_damages import Flaky, Killed, measured, model_in

SCALE = 1.25  # which is exact: one matrix of the model in memory is the other's
GRID = {"dim_ff": [7, 14, 21, 30], "num_heads": [2, 4]}


def solution(found: Damages, config: Any, how: str) -> tuple[dict[tuple[int, str], Choice], Kept]:
    """Take of every sublayer a choice, and say what is kept.

    Args:
        how: "cut", the last attention being absent; "whole" feed-forwards; "block", the first being absent; or "one"
            sublayer that is cut and no other.
    """
    places, last = dict[tuple[int, str], Choice](), (len(config.layers) - 1, "attention")
    for choice, _ in found.choices:
        place, block = (choice.layer, choice.sublayer), how == "block" and choice.layer == 0
        dense = choice.sublayer == "feed_forward" if how == "whole" else how == "one" and place != last
        there = not block and not (how == "cut" and place == last)
        wanted = (choice.sublayer == "block", choice.is_dense(config), bool(choice.kept)) == (block, dense, there)
        if wanted:
            places.setdefault(place, choice)
    layers = list(everything(config))
    for choice in places.values():
        layers[choice.layer] = members(found.scores, Kept(layers), choice)
    return places, Kept(layers)


def exchange_job(kind: str, directory: Path, how: str = "cut", **changes: Any) -> tuple[Any, NaiveExchanges]:
    """Prepare to measure a solution's changes, on other text than damages -> it, and who tells them again."""
    dense, given = model_in(kind, directory), batches(kind, 7)
    found = measured(kind, directory, given[:5], grid=GRID)
    config = read_config(directory / "model")
    taken, kept = solution(found, config, how)
    naive = NaiveExchanges(kind, dense, given[:REFITTED] + given[5:], found, taken, SCALE)
    weights = open_model_tensors(directory / "model")
    state = {name: weights[name] * (SCALE if _is_cut(name, naive, kind) else 1.0) for name in weights}
    save_outputs(directory / "cut", config, everything(config), as_outputs(state))
    (directory / "masks").mkdir()
    (directory / "masks/kept.json").write_text(json.dumps(kept.to_json()))
    assert taken_by(kept.inside(everything(config)), [choice for choice, _ in found.choices]) == taken
    units = tuple(sorted({unit for _, unit in found.scores}))
    more: dict[str, Any] = {"files": {}, "device": "cpu", "report": lambda event: None, "given": given}
    more |= {"saves": changes.pop("saves", None), "out": directory / "exchanges"}
    options = ExchangeOptions(**OPTIONS | {"units": units, "damage_batches": 2, "number": 1} | changes)
    inputs = {"model": "cut", "dense": "model", "masks": "masks", "damages": "out", "data": "model"}
    more["out"].mkdir()
    return GivenJob(options, {role: directory / name for role, name in inputs.items()}, **more), naive


def exchanged(kind: str, directory: Path, how: str = "cut", **changes: Any) -> tuple[Damages, NaiveExchanges]:
    job, naive = exchange_job(kind, directory, how, **changes)
    score_exchanges.run(job)
    return load_damages(job.out), naive


def _is_cut(name: str, naive: NaiveExchanges, kind: str) -> bool:
    """Tell whether a weight is one that the solution cuts; of an absent sublayer any will do."""
    names = NAMES[kind]
    return any(
        name == f"{names.block.format(layer)}.{getattr(names, sublayer)[0]}.weight"
        for (layer, sublayer), choice in naive.taken.items()
        if choice.kept
    )


@pytest.mark.parametrize("kind", list(NAMES))
def test_a_change_is_what_the_models_in_memory_say(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprunec.plan.search.local_search.NEXT", 1)  # of few heads and groups, too
    found, naive = exchanged(kind, tmp_path)
    offered = [choice for choice, _ in found.choices if choice.kept]
    assert any(not choice.kept for choice, _ in found.choices) and len(offered) > len(naive.taken)
    wanted = dict(zip(offered, naive.changes(offered, 1, OPTIONS["seed"] + 1), strict=True))
    for choice, change in found.choices:
        assert change == pytest.approx(wanted.get(choice, 0.0), rel=1e-3, abs=2e-7), choice
        assert change == 0 or choice not in naive.taken.values()
    assert max(wanted.values()) > 1e-3


@pytest.mark.parametrize("how", ["whole", "block", "one"])
def test_what_is_whole_or_absent_has_a_place_among_changes(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprunec.plan.search.local_search.NEXT", 1)
    found, naive = exchanged("llama", tmp_path, how)
    offered = [choice for choice, _ in found.choices if choice.kept]
    wanted = dict(zip(offered, naive.changes(offered, 1, OPTIONS["seed"] + 1), strict=True))
    assert len(offered) > 2 and {c for c, _ in found.choices} >= {*naive.taken.values()}
    for choice, change in found.choices:
        assert change == pytest.approx(wanted.get(choice, 0.0), rel=1e-3, abs=2e-7), choice
    assert any(choice.sublayer == "block" for choice, _ in found.choices) == (how == "block")


@pytest.mark.parametrize("at", [2, 4, 6, 8])
def test_what_was_killed_goes_on_and_finds_the_same(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cut model, in the dense one, on the way back, and among the choices."""
    wanted, _ = exchanged("llama", tmp_path / "whole")
    job, _ = exchange_job("llama", tmp_path / "killed", saves=Saves(tmp_path / "partial", 1, lambda: False))
    monkeypatch.setattr("sprunec.models.streamed.Streamed", Flaky)
    Flaky.at, Flaky.count = at, 0
    with pytest.raises(Killed):
        score_exchanges.run(job)
    assert not any(job.out.iterdir())
    Flaky.at, Flaky.count = -1, 0
    score_exchanges.run(job)
    assert load_damages(job.out).choices == wanted.choices
    assert Flaky.count < 8


def test_samples_are_averaged(tmp_path: Path) -> None:
    found, naive = exchanged("llama", tmp_path, samples=3)
    offered = [choice for choice, _ in found.choices if choice.kept]
    wanted = naive.changes(offered, 3, OPTIONS["seed"] + 1)
    assert [d for c, d in found.choices if c.kept] == pytest.approx(list(wanted), rel=1e-3, abs=2e-7)


def test_near_is_what_is_within_a_sixteenth_or_next_and_within_an_eighth() -> None:
    sizes = [Choice(0, "feed_forward", {"dim_ff": width}) for width in (64, 60, 59, 52, 40, 24)]
    heads = [Choice(0, "attention", {"kv_group": k, "head": 4 * k}) for k in (8, 7, 6, 5)]
    few = [Choice(0, "attention", {"kv_group": k, "head": 4 * k}) for k in (4, 3, 2)]
    absent = [Choice(0, "feed_forward", {}), Choice(1, "attention", {}), Choice(1, "block", {})]
    taken = {(0, "feed_forward"): sizes[0], (0, "attention"): heads[2], (1, "block"): absent[2]}
    assert near([*sizes, *heads, *absent], taken) == [*sizes[:2], *heads[1:], absent[2]]
    assert near(sizes, {(0, "feed_forward"): sizes[2]}) == sizes[1:4]
    assert near(sizes, {(0, "feed_forward"): sizes[1]}) == sizes[:3]
    assert near(sizes, {(0, "feed_forward"): sizes[4]}) == sizes[4:5]
    assert near(few, {(0, "attention"): few[1]}) == few[1:2]


def test_what_is_absent_is_taken_as_a_block_where_that_is_a_choice() -> None:
    own = [Choice(0, kind, {}) for kind in ("attention", "feed_forward", "block")]
    assert taken_by(Kept([{}]), own) == {(0, "block"): own[2]}
    assert taken_by(Kept([{}]), own[:2]) == {(0, kind): own[n] for n, kind in enumerate(("attention", "feed_forward"))}
