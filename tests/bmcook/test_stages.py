"""One l0_pruning.json is one stage: what it learns, what it only applies, and what becomes of several in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.source import Source
from tests.helpers.bmcook_files import COARSE, FINE, bmcook, converted, errors, said, write

STEPS = Flags(train_iters=5)
HEADS, DIMS, LAYERS = "results/sprune/heads.pt", "results/sprune/dims.pt", "results/sprune/layers.pt"
IN_EACH = {"budget": "per-layer", "steps": 5}
LEARN_HEADS = {"pass": "train-mask", "unit": "head", "target": {"num_heads": 3}, **IN_EACH, "save_mask": HEADS}
LEARN_DIMS = {"pass": "train-mask", "unit": "dim_ff", "target": {"dim_ff": 20}, **IN_EACH, "save_mask": DIMS}
FINETUNE = {"pass": "finetune", "steps": 5}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stage(folder: Path, options: dict[str, Any], method: str = "fine-grained", flags: Flags = STEPS) -> Source:
    return converted(folder, bmcook(method), flags, l0_pruning={method: options})


def passes(source: Source) -> list[dict[str, Any]]:
    """All but the emit at the end."""
    assert not errors(source)
    assert source.value["passes"][-1]["pass"] == "emit"
    return source.value["passes"][:-1]


@pytest.mark.parametrize(("mode", "learn"), [("att", LEARN_HEADS), ("ffn", LEARN_DIMS)])
def test_prune_mode_says_which_mask_is_learned(tmp_path: Path, mode: str, learn: dict[str, Any]) -> None:
    assert passes(stage(tmp_path, FINE | {"prune_mode": mode})) == [learn]


@pytest.mark.parametrize(("mode", "own", "other"), [("att", HEADS, DIMS), ("ffn", DIMS, HEADS)])
def test_its_own_mask_is_never_read_and_the_other_one_is(tmp_path: Path, mode: str, own: str, other: str) -> None:
    for name in (own, other):
        write(tmp_path, name, "a mask")
    source = stage(tmp_path, FINE | {"prune_mode": mode})
    first, second = passes(source)
    assert first == {"pass": "load-mask", "path": [other]}
    assert second["save_mask"] == own
    (told,) = said(source, "other-mask")
    assert f"{other}, made just now, is in force" in told.message


def test_a_fixed_stage_reads_both_files(tmp_path: Path) -> None:
    for name in (HEADS, DIMS):
        write(tmp_path, name, "a mask")
    source = stage(tmp_path, FINE | {"train_mask": False})
    assert passes(source) == [{"pass": "load-mask", "path": [HEADS, DIMS]}, FINETUNE]


def test_a_fixed_stage_goes_without_a_mask_that_is_not_made_yet(tmp_path: Path) -> None:
    write(tmp_path, HEADS, "a mask")
    source = stage(tmp_path, FINE | {"train_mask": False})
    assert passes(source) == [{"pass": "load-mask", "path": [HEADS]}, FINETUNE]
    assert [finding.pointer for finding in said(source, "no-mask-yet")] == ["/fine-grained/dimff_mask"]


def test_a_fixed_stage_asks_for_both_when_there_is_none(tmp_path: Path) -> None:
    assert passes(stage(tmp_path, FINE | {"train_mask": False}))[0]["path"] == [HEADS, DIMS]


def test_no_steps_make_an_actual_prune_of_a_fixed_stage(tmp_path: Path) -> None:
    write(tmp_path, HEADS, "a mask")
    source = stage(tmp_path, FINE | {"train_mask": False}, flags=Flags(train_iters=0))
    assert passes(source) == [{"pass": "load-mask", "path": [HEADS]}]
    assert not {"data", "outputs", "training"} & source.value.keys()


def test_a_mask_cannot_be_learned_in_no_steps(tmp_path: Path) -> None:
    found = errors(stage(tmp_path, FINE, flags=Flags(train_iters=0)))
    assert len(found) == 1
    assert "/fine-grained: error: a mask is learned by training, and --train-iters is 0" in found[0]


def test_a_coarse_mask_is_optional(tmp_path: Path) -> None:
    with_one = stage(tmp_path, {"coarse_mask": LAYERS} | FINE)
    assert passes(with_one)[0] == {"pass": "load-mask", "path": [LAYERS]}
    assert passes(with_one)[1] == passes(stage(tmp_path, FINE))[0] == LEARN_HEADS


def test_coarse_grained_learns_sublayers_or_applies_them(tmp_path: Path) -> None:
    learn = {"pass": "train-mask", "unit": "layer", "target": {"sparsity": 0.4}, "steps": 5, "save_mask": LAYERS}
    assert passes(stage(tmp_path, COARSE, "coarse-grained")) == [learn]
    fixed = stage(tmp_path, COARSE | {"train_mask": False}, "coarse-grained")
    assert passes(fixed) == [{"pass": "load-mask", "path": [LAYERS]}, FINETUNE]


def test_stages_in_a_row_load_nothing_that_one_of_them_has_made(tmp_path: Path) -> None:
    guide = [FINE, FINE | {"train_mask": False}, FINE | {"prune_mode": "ffn"}, FINE | {"train_mask": False}]
    stages = [{"fine-grained": options} for options in guide]
    source = converted(tmp_path, bmcook("fine-grained"), STEPS, *stages)
    assert passes(source) == [LEARN_HEADS, FINETUNE, LEARN_DIMS, FINETUNE]
    assert source.value["outputs"] == {"checkpoint": "cpm_live_checkpoint-20.pt"}


def test_a_stage_with_one_section_means_that_one_in_a_row(tmp_path: Path) -> None:
    source = converted(tmp_path, bmcook("fine-grained"), STEPS, {"coarse-grained": COARSE}, {"fine-grained": FINE})
    assert [entry["unit"] for entry in passes(source)] == ["layer", "head"]
    alone = converted(tmp_path, bmcook("fine-grained"), STEPS, l0_pruning={"coarse-grained": COARSE})
    assert any("there is no section" in each for each in errors(alone))


@pytest.mark.parametrize(
    ("left_out", "said_instead"),
    [
        ("train_mask", '"train_mask" is missing; add "train_mask": true'),
        ("prune_mode", '"prune_mode" is missing; add "prune_mode": "att"'),
        ("target_num_heads", '"target_num_heads" is missing; add "target_num_heads": 4'),
    ],
)
def test_what_a_mode_needs_is_asked_for(tmp_path: Path, left_out: str, said_instead: str) -> None:
    options = {key: value for key, value in FINE.items() if key != left_out}
    (found,) = errors(stage(tmp_path, options))
    assert said_instead in found
    assert "l0_pruning.json:" in found


def test_a_missing_second_file_names_the_flag(tmp_path: Path) -> None:
    (found,) = errors(converted(tmp_path, bmcook("fine-grained"), STEPS))
    assert "there is no such file; put it beside bmcook.json, or name it with --sprune-config" in found


def test_sprune_config_names_the_second_file(tmp_path: Path) -> None:
    path = write(tmp_path, "elsewhere/stage.json", {"fine-grained": FINE})
    flags = Flags(train_iters=5, sprune_config=str(path))
    assert passes(converted(tmp_path, bmcook("fine-grained"), flags)) == [LEARN_HEADS]


@pytest.mark.parametrize(("mode", "other"), [("att", "dimff_mask"), ("ffn", "heads_mask")])
def test_the_other_mask_that_is_not_there_is_said(tmp_path: Path, mode: str, other: str) -> None:
    source = stage(tmp_path, FINE | {"prune_mode": mode})
    assert [finding.pointer for finding in said(source, "no-mask-yet")] == [f"/fine-grained/{other}"]


def test_one_path_spelt_in_two_ways_is_one_file(tmp_path: Path) -> None:
    other = FINE | {"train_mask": False, "heads_mask": "./results//sprune/heads.pt"}
    source = converted(tmp_path, bmcook("fine-grained"), STEPS, {"fine-grained": FINE}, {"fine-grained": other})
    assert passes(source) == [LEARN_HEADS, FINETUNE]


def test_a_section_that_is_not_used_stops_nobody(tmp_path: Path) -> None:
    second = {"fine-grained": FINE, "coarse-grained": {"target_sparsity": 1.5, "coarse_mask": ""}}
    assert passes(converted(tmp_path, bmcook("fine-grained"), STEPS, l0_pruning=second)) == [LEARN_HEADS]


def test_each_learned_mask_without_a_path_stays_in_out(tmp_path: Path) -> None:
    options = {key: value for key, value in FINE.items() if key != "heads_mask"}
    source = stage(tmp_path, options)
    assert "save_mask" not in passes(source)[0]
    assert "OUT/masks" in said(source, "no-mask-path")[0].message
