"""mask_method sprune and structure: the keys of every generation say the same things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.source import Source
from tests.helpers.bmcook_files import bmcook, converted, errors, said

STEPS = Flags(train_iters=5)
FIRST = {
    "criterion": "l0",
    "training_mask": ["transformer", "num_heads"],
    "fixed_mask_path": "",
    "mask_mode": "train_mask",
    "target_mode": "sparsity",
    "target_sparsity": 0.5,
}
LATER = {
    "criterion": "l0",
    "training_mask": ["att"],
    "mask_path": "results/mask.bin",
    "mode": "tuning",
    "target_mode": "sparsity",
    "target_sparsity": 0.5,
    "start_sparsity": 0.8,
    "hard_binarize": True,
}
LAST = {
    "criterion": "l0",
    "training_mask": ["num_heads", "dim_head", "dim_ff"],
    "mask_path": "results/mask.bin",
    "is_training": True,
    "target_mode": "sparsity",
    "target_sparsity": 0.5,
    "start_sparsity": 0.1,
    "hard_binarize": True,
    "tuning": {"iterative": False, "interval": 100, "ratio": 0.1},
}
SAVED = {"save_mask": "results/mask.bin", "mask_form": "plugin"}
LOADED = [{"pass": "load-mask", "path": ["results/mask.bin"]}, {"pass": "finetune", "steps": 5}]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def block(folder: Path, options: dict[str, Any]) -> Source:
    content = bmcook("sprune")
    content["pruning"]["sprune"] = options
    return converted(folder, content, STEPS)


def passes(source: Source) -> list[dict[str, Any]]:
    assert not errors(source)
    return source.value["passes"][:-1]


def learned(*units: str, **options: Any) -> list[dict[str, Any]]:
    return [{"pass": "train-mask", "unit": list(units), "target": {"sparsity": 0.5}, "steps": 5, **options}]


def test_the_first_keys_learn_or_apply_fixed_mask_path(tmp_path: Path) -> None:
    assert passes(block(tmp_path, FIRST)) == learned("block", "head")
    fixed = FIRST | {"mask_mode": "fixed_mask", "fixed_mask_path": "results/mask.bin"}
    assert passes(block(tmp_path, fixed)) == LOADED
    both = passes(block(tmp_path, FIRST | {"fixed_mask_path": "results/mask.bin"}))
    assert both == [LOADED[0], *learned("block", "head")]


def test_the_later_keys_tune_under_mask_path_or_write_it(tmp_path: Path) -> None:
    assert passes(block(tmp_path, LATER)) == LOADED
    assert passes(block(tmp_path, LATER | {"mode": "training"})) == learned("attention", **SAVED)


def test_the_last_keys_learn_or_tune_by_is_training(tmp_path: Path) -> None:
    assert passes(block(tmp_path, LAST)) == learned("head", "dim_head", "dim_ff", **SAVED)
    assert passes(block(tmp_path, LAST | {"is_training": False})) == LOADED


def test_what_the_original_had_and_this_has_not_is_said(tmp_path: Path) -> None:
    source = block(tmp_path, LAST | {"hard_binarize": False, "tuning": {"iterative": True}})
    assert sorted(finding.pointer.rpartition("/")[2] for finding in said(source, "unused-option")) == [
        "hard_binarize",
        "iterative",
        "start_sparsity",
    ]


def test_start_sparsity_of_0_and_1_divide_by_nothing(tmp_path: Path) -> None:
    """The original raises ZeroDivisionError or ValueError."""
    for start in (0, 1):
        assert passes(block(tmp_path, LAST | {"start_sparsity": start})) == learned(
            "head", "dim_head", "dim_ff", **SAVED
        )


def test_names_that_this_model_has_not_are_said_and_left_out(tmp_path: Path) -> None:
    source = block(tmp_path, FIRST | {"training_mask": ["cross_att_layer", "ffn"]})
    assert passes(source)[0]["unit"] == ["feed_forward"]
    assert "no cross attention" in said(source, "unused-option")[0].message
    (found,) = errors(block(tmp_path, FIRST | {"training_mask": ["dim_model"]}))
    assert "nothing of this can be pruned" in found


def test_an_unknown_name_is_no_empty_list(tmp_path: Path) -> None:
    """The original takes any name, and then divides by zero."""
    (found,) = errors(block(tmp_path, FIRST | {"training_mask": ["num_head"]}))
    assert '/pruning/sprune/training_mask/0: error: "num_head"' in found
    assert 'did you mean "num_heads"?' in found


def test_a_path_of_another_generation_is_said(tmp_path: Path) -> None:
    source = block(tmp_path, FIRST | {"mask_path": "results/mask.bin"})
    assert passes(source) == learned("block", "head")
    (told,) = said(source, "unused-option")
    assert told.pointer == "/pruning/sprune/mask_path"


def test_a_fixed_mask_needs_a_file(tmp_path: Path) -> None:
    for options in (LATER | {"mask_path": ""}, FIRST | {"mask_mode": "fixed_mask"}):
        (found,) = errors(block(tmp_path, options))
        assert "names no file" in found


@pytest.mark.parametrize("section", ["target_mode", "training_mode"])
def test_sprune_json_of_both_spellings(tmp_path: Path, section: str) -> None:
    main = {"criterion": "l0", "training_mask": ["self_att_layer"], "fixed_mask_path": "", "mask_mode": "train_mask"}
    second = {"main": main | {section: "sparsity", "iterational": False}, section: {"sparsity": 0.5, "dimension": 20}}
    assert passes(converted(tmp_path, bmcook("structure"), STEPS, sprune=second)) == learned("attention")
    second["main"] |= {section: "dimension", "training_mask": ["dim_ff"]}
    (entry,) = passes(converted(tmp_path, bmcook("structure"), STEPS, sprune=second))
    assert entry["target"] == {"dim_ff": 20}
    second["main"] |= {"mask_mode": "fixed_mask", "fixed_mask_path": "results/mask.bin"}
    assert passes(converted(tmp_path, bmcook("structure"), STEPS, sprune=second)) == LOADED


def test_dimension_is_not_misspelt_into_nothing(tmp_path: Path) -> None:
    """The original tells dimension from dimention."""
    for word in ("dimension", "dimention"):
        main = {"training_mask": ["num_heads"], "target_mode": word}
        second = {"main": main, "target_mode": {"dimension": 3}}
        (entry,) = passes(converted(tmp_path, bmcook("structure"), STEPS, sprune=second))
        assert entry["target"] == {"num_heads": 3}
