"""Damages of choices are what a whole model in memory says of them, wherever its states lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sprunec.checkpoint.writer import as_outputs
from sprunec.data.batches import Batch
from sprunec.engines.checkpoints import Saves
from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.families.model_directory import save_outputs
from sprunec.masks.search import divergence, sampled
from sprunec.masks.search.damages_file import Damages
from sprunec.models.streamed import Streamed
from sprunec.passes import score_choices
from tests.conftest import tiny_config, tiny_model
from tests.helpers.choices import OPTIONS, damages, job_of
from tests.helpers.cut_lms import saved
from tests.helpers.naive_choices import NAMES, Naive, batches

UNITS = {"gpt2": ("head", "dim_ff", "layer", "block"), "cpm_ant": ("head", "dim_ff", "layer", "block")}
GROUPED = ("kv_group", "head", "dim_ff", "layer", "block")
GRID = {"dim_ff": [7, 30], "num_heads": [2, 4]}


def model_in(kind: str, directory: Path) -> Any:
    """Save a small model as an artifact; give it in memory."""
    if kind == "cpm_ant":
        model, config = tiny_model(), tiny_config()
        state = model.state_dict()
    else:
        model, config, tensors = saved(kind, directory / "class")
        state = {name: tensors[name] for name in tensors}
    save_outputs(directory / "model", config, everything(config), as_outputs(state))
    return model


def measured(kind: str, directory: Path, given: list[Batch], **changes: Any) -> Damages:
    units = UNITS.get(kind, GROUPED)
    return damages(directory / "model", directory / "out", given, units, **{"grid": GRID} | changes)


def same(found: Damages, wanted: dict[Any, float]) -> None:
    assert len(found.choices) == len(wanted) and found.choices
    for choice, damage in found.choices:
        assert damage == pytest.approx(wanted[key(choice)], rel=2e-4, abs=1e-7), choice


def key(choice: Any) -> Any:
    return choice.layer, choice.sublayer, tuple(choice.kept.items())


@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("damage", ["fisher", "kl"])
def test_a_damage_is_what_the_model_in_memory_says(kind: str, damage: str, tmp_path: Path) -> None:
    model, given = model_in(kind, tmp_path), batches(kind)
    found = measured(kind, tmp_path, given, damage=damage)
    naive = Naive(kind, model, given, found, OPTIONS["ridge"])
    wanted = {key(choice): value for choice, value in (naive.fisher() if damage == "fisher" else naive.divergence())}
    same(found, wanted)
    assert found.tokens == sum(batch.target_count for batch in given[3:])
    assert sum(damage > 1e-4 for _, damage in found.choices) > len(found.choices) / 2


@pytest.mark.parametrize("kind", ["llama", "cpm_ant"])
def test_samples_are_averaged(kind: str, tmp_path: Path) -> None:
    model, given = model_in(kind, tmp_path), batches(kind)
    found = measured(kind, tmp_path, given, samples=3)
    naive = Naive(kind, model, given, found, OPTIONS["ridge"])
    same(found, {key(choice): value for choice, value in naive.fisher(samples=3)})


@pytest.mark.parametrize("damage", ["fisher", "kl"])
def test_the_vocabulary_may_come_in_parts(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_in("llama", tmp_path)
    found = measured("llama", tmp_path, batches("llama"), damage=damage)
    monkeypatch.setattr(sampled, "HEAD_LOGITS", 700)
    parts = damages(tmp_path / "model", tmp_path / "parts", batches("llama"), GROUPED, grid=GRID, damage=damage)
    same(parts, {key(choice): value for choice, value in found.choices})


@pytest.mark.parametrize("damage", ["fisher", "kl"])
def test_choices_may_go_through_the_blocks_one_by_one(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_in("gpt2", tmp_path)
    found = measured("gpt2", tmp_path, batches("gpt2"), damage=damage)
    monkeypatch.setattr(divergence, "TAILS", 1)
    one = damages(tmp_path / "model", tmp_path / "one", batches("gpt2"), UNITS["gpt2"], grid=GRID, damage=damage)
    assert one.choices == found.choices


class Killed(Exception):  # noqa: N818
    """Where a process would have ended."""


class Flaky(Streamed):
    """Ends at the block that `at` counts to, in whatever stage that is."""

    at, count = -1, 0

    def holding_whole(self, path: str) -> Any:
        Flaky.count += 1
        if Flaky.count == Flaky.at:
            raise Killed
        return super().holding_whole(path)


def saving(directory: Path, keep: str) -> dict[str, Any]:
    return {"saves": Saves(directory / "partial", 1, lambda: False), "engine": {"hidden_states": keep}}


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(("damage", "ats"), [("fisher", (2, 3, 4, 5, 6)), ("kl", (2, 3, 4, 5))])
def test_what_was_killed_goes_on_and_finds_the_same(
    damage: str, ats: tuple[int, ...], keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_in("llama", tmp_path)
    units, options = ("kv_group", "dim_ff", "block"), {"grid": {"dim_ff": [30]}, "damage": damage}
    given: list[Any] = [tmp_path / "model", tmp_path / "out", batches("llama"), units]
    damages(*given, **options)
    wanted = content(tmp_path / "out")
    monkeypatch.setattr("sprunec.models.streamed.Streamed", Flaky)
    for at in ats:
        folder, Flaky.at, Flaky.count = tmp_path / str(at), at, 0
        given[1] = folder / "out"
        given[1].mkdir(parents=True)
        with pytest.raises(Killed):
            score_choices.run(job_of(*given, **options, **saving(folder, keep)))
        assert not any(given[1].iterdir())
        Flaky.at, Flaky.count = -1, 0
        score_choices.run(job_of(*given, **options, **saving(folder, keep)))
        assert content(given[1]) == wanted
        counted = Flaky.count
        Flaky.count = 0
        whole = tmp_path / "whole" / str(at)
        whole.mkdir(parents=True)
        score_choices.run(job_of(given[0], whole, *given[2:], **options))
        assert content(whole) == wanted and counted < Flaky.count, at


def test_damaged_states_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_in("llama", tmp_path)
    given: list[Any] = [tmp_path / "model", tmp_path / "out", batches("llama"), ("dim_ff",)]
    damages(*given)
    wanted = content(tmp_path / "out")
    monkeypatch.setattr("sprunec.models.streamed.Streamed", Flaky)
    given[1], Flaky.at, Flaky.count = tmp_path / "again", 6, 0
    given[1].mkdir()
    with pytest.raises(Killed):
        score_choices.run(job_of(*given, **saving(tmp_path, "disk")))
    (path,) = (tmp_path / "partial/inside-00001").iterdir()
    held = bytearray(path.read_bytes())
    held[9] ^= 1
    path.write_bytes(held)
    Flaky.at = -1
    score_choices.run(job_of(*given, **saving(tmp_path, "disk")))
    assert content(given[1]) == wanted


def test_progress_is_told_over_all_stages(tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    for damage, stages in (("fisher", 3), ("kl", 2)):
        told = list[tuple[int, int]]()
        options = {"damage": damage, "report": lambda event, told=told: told.append((event["step"], event["steps"]))}
        damages(tmp_path / "model", tmp_path / damage, batches("llama"), ("dim_ff",), **options)
        assert told == [(step, 2 * stages) for step in range(1, 2 * stages + 1)]


def test_text_that_was_refitted_on_is_not_measured_on(tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    *refitted, again, other = (replace(b, targets=b.inputs["input"].roll(-1, 1)) for b in batches("llama"))
    seen = Batch(refitted[1].inputs, refitted[1].targets)
    alone = damages(tmp_path / "model", tmp_path / "alone", [*refitted, other], ("dim_ff",))
    found = damages(tmp_path / "model", tmp_path / "mixed", [*refitted, other, seen], ("dim_ff",))
    assert found.tokens == alone.tokens == other.target_count
    assert [damage for _, damage in found.choices] == pytest.approx([damage for _, damage in alone.choices], rel=1e-5)
    more = damages(tmp_path / "model", tmp_path / "more", [*refitted, other, again], ("dim_ff",))
    assert more.tokens == other.target_count + again.target_count
    with pytest.raises(InputError, match="among what choices are refitted on"):
        damages(tmp_path / "model", tmp_path / "none", [*refitted, seen], ("dim_ff",))
