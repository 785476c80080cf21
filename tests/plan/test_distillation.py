"""What a plan's distillation means: its defaults, whose it is, which teacher it has, and what it does to digests."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

import sprunec
from sprunec import read_plan
from sprunec.errors import InputError
from sprunec.families.base_config import token_operations
from sprunec.graph.graph import Graph
from sprunec.plan.plan import Plan, check_plan
from tests.helpers.small_plans import EMIT, TRAIN, mask_pass, plan, save_weights, write

PAIR = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"
HEADS = mask_pass("head", {"num_heads": 3})
TUNE = {"pass": "finetune", "steps": 2}
HALF = {"distillation": {"logits": 0.5}}
ALONE = {"distillation": None}
NARROW = "[pre]{0}.attention_out:[pre]{0}.attention_out".format("encoder.layers.0.self_att.self_attention")
SAME = "[post]encoder.layers.0.ffn.ffn.w_in:[post]encoder.layers.0.ffn.ffn.w_in"


def checked(directory: Path, *passes: dict[str, Any], **changes: Any) -> tuple[Plan | None, list[str]]:
    found, findings = check_plan(write(directory, plan(*passes, **changes)))
    return found, [finding.code for finding in findings]


def lowered(directory: Path, *passes: dict[str, Any], **changes: Any) -> Graph:
    return sprunec.lower(sprunec.read_plan(write(directory, plan(*passes, **changes))))


def teachers(graph: Graph) -> dict[str, str]:
    return {node.name: node.inputs["teacher"] for node in graph.nodes if "teacher" in node.inputs}


def test_defaults_are_filled_in_and_the_teacher_is_beside_the_plan(tmp_path: Path) -> None:
    given = {"hidden": 1, "pairs": [PAIR], "teacher": "t.safetensors"}
    found, _ = checked(tmp_path, TRAIN | ALONE, HEADS, TUNE, training={"distillation": given})
    assert found is not None
    assert found.passes[0].options["distillation"] is None
    assert dict(found.passes[2].options["distillation"]) == {
        "logits": 0.0,
        "divergence": "forward",
        "temperature": 1.0,
        "on": None,
        "hidden": 1.0,
        "pairs": (PAIR,),
        "project": False,
        "teacher": tmp_path / "t.safetensors",
        "teacher_cache": None,
    }


def test_a_pass_with_its_own_replaces_the_plans(tmp_path: Path) -> None:
    passes = (TRAIN | ALONE, HEADS, TUNE | {"distillation": {"logits": 2}}, TUNE | ALONE)
    found, codes = checked(tmp_path, *passes, training={"distillation": {"logits": 1, "temperature": 3}})
    assert codes == []
    assert found is not None
    assert [spec.options["distillation"] and spec.options["distillation"]["temperature"] for spec in found.passes] == [
        None,
        3.0,
        1.0,
        None,
    ]


@pytest.mark.parametrize(
    ("first", "pair", "code"),
    [
        ([], SAME, []),
        ([mask_pass("dim_ff", {"dim_ff": 20})], SAME, ["unlike-states"]),
        ([mask_pass("dim_ff", {"dim_ff": 20}), TUNE], SAME, ["unlike-states"]),
        ([mask_pass("head", {"num_heads": 3})], SAME, []),
        ([mask_pass("head", {"num_heads": 3})], NARROW, ["unlike-states"]),
        ([mask_pass("attention", {"num_attention": 2})], SAME, []),
        ([mask_pass("head", {"num_heads": 3})], PAIR, []),
    ],
)
def test_states_that_an_earlier_pass_narrows_need_a_projection(
    first: list[dict[str, Any]], pair: str, code: list[str], tmp_path: Path
) -> None:
    last = mask_pass("dim_head", {"dim_head": 4}, distillation={"hidden": 1, "pairs": [pair]})
    assert checked(tmp_path, TRAIN, *first, last)[1] == code
    last["distillation"]["project"] = True
    assert checked(tmp_path, TRAIN, *first, last)[1] == []


def test_the_teacher_is_the_model_before_the_first_pass_that_cuts(tmp_path: Path) -> None:
    dims = mask_pass("dim_ff", {"dim_ff": 20})
    graph = lowered(tmp_path, TRAIN, TRAIN, HEADS | HALF, TUNE | HALF, TUNE, dims, TUNE | HALF, EMIT)
    dense = [node.name for node in graph.nodes if node.pass_ == "train"][-1]
    assert set(teachers(graph).values()) == {dense}
    assert [graph.node(name).pass_ for name in teachers(graph)] == ["train-mask", "finetune", "finetune"]


def test_a_teacher_from_a_file_is_loaded_once(tmp_path: Path) -> None:
    save_weights(tmp_path / "t.pt")
    given = {"distillation": {"logits": 0.5, "teacher": "t.pt"}}
    graph = lowered(tmp_path, TRAIN | given, HEADS | given, TUNE | HALF, EMIT)
    (loaded,) = [node for node in graph.nodes if node.name.endswith("-load-teacher")]
    assert list(teachers(graph).values())[:2] == [loaded.name] * 2
    assert graph.node(list(teachers(graph).values())[2]).pass_ == "train"
    assert loaded.files == {"checkpoint": (tmp_path / "t.pt",)}
    assert loaded.options.config == graph.node(graph.roles.source).options.config
    save_weights(tmp_path / "t.pt", seed=1)
    again = lowered(tmp_path, TRAIN | given, HEADS | given, TUNE | HALF, EMIT)
    assert again.node(loaded.name).digest != loaded.digest
    assert [n.digest == m.digest for n, m in zip(graph.nodes, again.nodes, strict=True) if n.pass_ == "train"] == [
        False
    ]


def test_without_distillation_digests_are_what_they_were(tmp_path: Path) -> None:
    plain = lowered(tmp_path, TRAIN, HEADS, TUNE, EMIT)
    null = lowered(tmp_path, TRAIN, HEADS | ALONE, TUNE | ALONE, EMIT, training=ALONE)
    assert [node.digest for node in plain.nodes] == [node.digest for node in null.nodes]
    assert all("distillation" not in node.options.document() and "teacher" not in node.inputs for node in plain.nodes)


def test_what_is_distilled_changes_digests_and_where_the_teacher_lies_does_not(tmp_path: Path) -> None:
    def digest(**options: Any) -> str | None:
        graph = lowered(tmp_path, TRAIN, HEADS, TUNE | {"distillation": options}, EMIT)
        return next(node.digest for node in graph.nodes if node.pass_ == "finetune")

    copyfile(save_weights(tmp_path / "a.pt"), tmp_path / "b.pt")
    assert digest(logits=0.5) == digest(logits=0.5, hidden=0, temperature=1.0)
    assert len({digest(logits=0.5), digest(logits=1), digest(logits=0.5, temperature=2)}) == 3
    assert digest(logits=0.5, teacher="a.pt") == digest(logits=0.5, teacher="b.pt") != digest(logits=0.5)


def test_a_teachers_forward_passes_are_counted(tmp_path: Path) -> None:
    plain, taught = lowered(tmp_path, TRAIN, HEADS, TUNE, EMIT), lowered(tmp_path, TRAIN, HEADS, TUNE | HALF, EMIT)
    steps, rows, length = 2, 4, 34
    assert taught.tokens == plain.tokens
    each = token_operations(read_plan(tmp_path / "plan.json").model.config, length, head=True)
    assert taught.flops - plain.flops == steps * rows * length * each


def test_a_teacher_that_is_not_there_stops_a_run_before_any_work(tmp_path: Path) -> None:
    given = {"distillation": {"logits": 0.5, "teacher": "nowhere.pt"}}
    graph = lowered(tmp_path, TRAIN, HEADS | given, EMIT)
    with pytest.raises(InputError, match=r"nowhere\.pt: .*there is no such file"):
        sprunec.execute(graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()
