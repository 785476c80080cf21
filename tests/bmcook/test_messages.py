"""What the original did wrong without a word is said, and what cannot be done is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.errors import InputError
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.open_plan import read_any
from sprunec.plan.plan import check_plan
from sprunec.plan.source import Source
from tests.helpers.bmcook_files import COARSE, CONFIG, FINE, bmcook, converted, errors, said, write

PARTS = [
    "ffn.ffn.w_in.w.weight",
    "ffn.ffn.w_out.weight",
    "self_attention.project_q.weight",
    "self_attention.project_k.weight",
    "self_attention.project_v.weight",
    "self_attention.attention_out.weight",
]


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "model.json", CONFIG)


FLAGS = Flags(train_iters=5, model_config="model.json", load="dense.pt", data_bin_path="data")


def fine(folder: Path, options: dict[str, Any] = FINE, **others: Any) -> Source:
    return converted(folder, bmcook("fine-grained") | others, FLAGS, l0_pruning={"fine-grained": options})


def sparse(folder: Path, method: str = "m4n2_1d", **pruning: Any) -> Source:
    content = bmcook(method)
    content["pruning"] |= {"pruned_module": PARTS[1:2]} | pruning
    return converted(folder, content, FLAGS)


@pytest.mark.parametrize("method", ["m4n2_1d", "m4n2_2d", "fine-grained"])
def test_a_part_of_a_name_that_matches_nothing_names_those_that_would(tmp_path: Path, method: str) -> None:
    content = bmcook(method)
    content["pruning"]["pruned_module"] = PARTS
    source = converted(tmp_path, content, FLAGS, l0_pruning={"fine-grained": FINE})
    (told,) = said(source, "matches-nothing")
    assert told.pointer == "/pruning/pruned_module/0"
    assert told.hint == 'did you mean "ffn.ffn.w_in.w_0.weight" and "ffn.ffn.w_in.w_1.weight"?'
    assert told.line == 6


def test_a_mask_file_that_is_there_is_named_with_its_age(tmp_path: Path) -> None:
    chosen = sparse(tmp_path, pruning_mask_path="mask.bin")
    assert chosen.value["passes"][0] == {
        "pass": "sparsify",
        "pattern": "m4n2_1d",
        "tensors": PARTS[1:2],
        "save_mask": "mask.bin",
    }
    write(tmp_path, "mask.bin", "a mask")
    found = sparse(tmp_path, pruning_mask_path="mask.bin")
    assert found.value["passes"][0]["path"] == "mask.bin"
    assert "mask.bin, made just now, is applied" in said(found, "mask-found")[0].message


def test_two_of_four_needs_names(tmp_path: Path) -> None:
    (found,) = errors(sparse(tmp_path, pruned_module=["[placehold]"]))
    assert "pruned_module names no tensors for m4n2_1d" in found


def test_unknown_keys_are_warned_of_at_every_level(tmp_path: Path) -> None:
    source = fine(tmp_path, FINE | {"target_numheads": 3}, pruned={"a": 1})
    assert sorted(finding.pointer for finding in said(source, "unknown-key")) == [
        "/fine-grained/target_numheads",
        "/pruned",
    ]
    assert {finding.hint for finding in said(source, "unknown-key")} == {
        'did you mean "target_num_heads"?',
        'did you mean "pruning"?',
    }


def test_sizes_that_disagree_with_the_config_are_said(tmp_path: Path) -> None:
    source = fine(tmp_path, FINE | {"num_heads": 16, "dim_ff": 700})
    assert [finding.pointer for finding in said(source, "config-mismatch")] == [
        "/fine-grained/num_heads",
        "/fine-grained/dim_ff",
    ]


def test_placeholders_and_short_module_names_are_said(tmp_path: Path) -> None:
    section = {"mse_hidn_scale": 1, "mse_hidn_module": ["[placehold]", "encoder.output_layernorm", "a:[pre]b"]}
    source = fine(tmp_path, distillation=section)
    assert len(said(source, "placeholder")) == 1
    assert [finding.message.partition(";")[0] for finding in said(source, "short-pair")] == [
        '"encoder.output_layernorm" is short for "[post]encoder.output_layernorm:[post]encoder.output_layernorm"',
        '"a:[pre]b" is short for "[post]a:[pre]b"',
    ]
    assert source.value["training"]["distillation"]["pairs"] == [
        "[post]encoder.output_layernorm:[post]encoder.output_layernorm",
        "[post]a:[pre]b",
    ]


def test_a_pair_without_a_module_is_an_error(tmp_path: Path) -> None:
    section = {"mse_hidn_scale": 1, "mse_hidn_module": ["[post]:"]}
    assert any("names no module" in each for each in errors(fine(tmp_path, distillation=section)))


def test_a_second_file_is_not_written_over(tmp_path: Path) -> None:
    fine(tmp_path, FINE | {"heads_mask": "l0_pruning.json"})
    _, found = check_plan("bmcook.json", flags=FLAGS)
    (wrong,) = [finding for finding in found if finding.severity == "error"]
    assert wrong.pointer == "/fine-grained/heads_mask"
    assert "is read by the plan" in wrong.message


@pytest.mark.parametrize("content", [{}, {"Pruning": {}}, {"name": "x"}])
def test_a_file_that_is_neither_says_so_or_what_is_missing(tmp_path: Path, content: dict[str, Any]) -> None:
    path = write(tmp_path, "what.json", content)
    _, found = check_plan(path, flags=Flags(train_iters=3))
    (wrong,) = found
    assert wrong.severity == "error"
    assert "train-iters" in wrong.message if "name" in content else "neither a plan nor" in wrong.message


@pytest.mark.parametrize(
    ("others", "pointer"),
    [
        ({"quantization": {"is_quant": True}}, "/quantization/is_quant"),
        ({"MoEfication": {"is_moefy": True}}, "/MoEfication/is_moefy"),
        ({"distillation": {"mse_att_scale": 1}}, "/distillation/mse_att_scale"),
    ],
)
def test_what_is_not_done_is_never_ignored(tmp_path: Path, others: dict[str, Any], pointer: str) -> None:
    source = fine(tmp_path, **others)
    assert [finding.pointer for finding in said(source, "not-done")] == [pointer]
    assert len(errors(source)) == 1


def test_a_part_that_its_method_has_no_use_for_stops_nobody(tmp_path: Path) -> None:
    content = bmcook("fine-grained")
    content["pruning"]["sprune"] = {"training_mask": ["nonsense"], "target_sparsity": 7}
    source = converted(tmp_path, content, FLAGS, l0_pruning={"fine-grained": FINE})
    assert not errors(source)
    assert {finding.severity for finding in source.problems} == {"warning"}


def test_the_default_method_is_fine_until_something_is_pruned(tmp_path: Path) -> None:
    content = bmcook("m4n2_1d/m4n2_2d/sprune", is_pruning=False)
    source = converted(tmp_path, content, FLAGS)
    assert not errors(source)
    assert [entry["pass"] for entry in source.value["passes"]] == ["train", "emit"]
    content["pruning"]["is_pruning"] = True
    (found,) = errors(converted(tmp_path, content, FLAGS))
    assert "/pruning/mask_method: error: is_pruning is true, and mask_method is a choice" in found


def test_target_sparsity_tells_both_shares(tmp_path: Path) -> None:
    source = converted(
        tmp_path, bmcook("coarse-grained"), FLAGS, l0_pruning={"coarse-grained": COARSE | {"target_sparsity": 0.75}}
    )
    (told,) = said(source, "share-removed")
    whole = 3 * (4 * 64 * 32 + 32 + 3 * 48 * 32 + 32)
    gone = round(0.75 * whole)
    assert told.message == (
        f"0.75 is the share removed: of {whole:,} parameters {gone:,} go (75.0%) and {whole - gone:,} stay (25.0%)"
    )
    assert told.hint == "to keep 75%, write 0.25"
    assert told.pointer == "/coarse-grained/target_sparsity"


@pytest.mark.parametrize("count", [9, 1000])
def test_more_heads_than_there_are_is_an_error_where_it_is_written(tmp_path: Path, count: int) -> None:
    fine(tmp_path, FINE | {"target_num_heads": count})
    plan, found = check_plan(tmp_path / "bmcook.json", flags=FLAGS)
    assert plan is None
    (wrong,) = [finding for finding in found if finding.severity == "error"]
    assert wrong.pointer == "/fine-grained/target_num_heads"
    assert wrong.file.endswith("l0_pruning.json")
    assert f"{count} is above 8" in wrong.message


def test_no_heads_at_all_is_an_error(tmp_path: Path) -> None:
    (found,) = errors(fine(tmp_path, FINE | {"target_num_heads": 0}))
    assert "/fine-grained/target_num_heads" in found


@pytest.mark.parametrize(
    ("pasted", "place", "words"),
    [
        ("{'pruning': {'is_pruning': True}}", ":1:2:", "put keys in double quotes"),
        ('{"pruning": {"pruning_mask_path": None}}', ":1:35:", "None is not a JSON value; write null"),
        ('{"pruning": {"is_pruning": true,}}', ":1:32:", "remove the comma"),
        ('{"distillation": {"ce_scale": 0, ...}}', ":1:34:", "three dots, which stand for something left out"),
        ('{"distillation": ...}', ":1:18:", "three dots"),
        ('{"pruning": {"is_pruning": True}}', ":1:28:", "write true"),
    ],
)
def test_pasted_fragments_are_told_which_and_where(tmp_path: Path, pasted: str, place: str, words: str) -> None:
    write(tmp_path, "bmcook.json", pasted)
    with pytest.raises(InputError) as caught:
        read_any(tmp_path / "bmcook.json")
    assert place in str(caught.value)
    assert words in str(caught.value)


def test_the_second_file_alone_is_not_a_plan(tmp_path: Path) -> None:
    path = write(tmp_path, "l0_pruning.json", {"fine-grained": FINE})
    with pytest.raises(InputError, match="name bmcook.json; this one is found beside it"):
        read_any(path)


def test_a_model_config_is_not_taken_for_a_plan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a model config, not a plan; look into it with sprunec inspect"):
        read_any(write(tmp_path, "model.json", CONFIG))


def test_another_file_is_not_taken_for_the_second(tmp_path: Path) -> None:
    (found,) = errors(converted(tmp_path, bmcook("fine-grained"), FLAGS, l0_pruning={"main": {}}))
    assert "this is no l0_pruning.json" in found
