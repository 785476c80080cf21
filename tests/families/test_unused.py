"""Tensors of a checkpoint that the model has no place for: refused on every run, unless the plan names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.writer import save_tensors
from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.passes import load
from sprunec.passes.job import Job
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, execute, plan, save_weights, write

HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
LAYER = "encoder.layers.0.self_att.self_attention."
ABSENT = {"mask_modules": [[False, False], [True, False], [False, False]]}
# what is left over, and changes to the config that leave it over
CHANGING: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "a bias": ({f"{LAYER}project_q.bias": torch.ones(64)}, {}),
    "a LoRA adapter": (
        {f"{LAYER}project_q.lora_A.weight": torch.ones(2, 32), f"{LAYER}project_q.lora_B.weight": torch.ones(64, 2)},
        {},
    ),
    "a head": ({"output_projection.weight": torch.ones(128, 32)}, {}),
    "half floats": ({"encoder.scale": torch.ones(3).half()}, {}),
    "brain floats": ({"encoder.scale": torch.ones(3).bfloat16()}, {}),
    "layers beyond": ({}, {"num_layers": 2}),
    "an absent sublayer": ({}, ABSENT),
}
HARMLESS: dict[str, Tensor] = {
    "position_ids": torch.arange(8),
    "embeddings.position_ids": torch.arange(8.0),
    "encoder.layers.0.self_att.inv_freq": torch.ones(4),
    "rotary.inv_freq": torch.ones(4),
    "encoder.num_batches_tracked": torch.tensor(3),
    "encoder.steps": torch.arange(3, dtype=torch.int32),
    "encoder.mask": torch.ones(3, dtype=torch.bool),
    "encoder.codes": torch.ones(3, dtype=torch.uint8),
}


def saved(folder: Path, name: str, extra: dict[str, Tensor]) -> Path:
    """A checkpoint of MODEL with more in it."""
    state = read_state(save_weights(folder / "plain.pt")) | extra
    if name.endswith(".safetensors"):
        save_tensors(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


def content(name: str, config: dict[str, Any], **model: Any) -> dict[str, Any]:
    return plan(HALF, EMIT, model={"config": MODEL | config, "checkpoint": name} | model)


def told(folder: Path, *arguments: Any, **model: Any) -> list[tuple[str, str, str]]:
    found = check_plan(write(folder, content(*arguments, **model)))[1]
    return [(each.severity, each.code, each.message.replace(str(folder), "~")) for each in found]


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("what", CHANGING)
def test_what_computes_something_is_refused(what: str, name: str, tmp_path: Path) -> None:
    extra, config = CHANGING[what]
    saved(tmp_path, name, extra)
    ((severity, code, message),) = told(tmp_path, name, config)
    assert (severity, code) == ("error", "checkpoint-extra")
    assert message.startswith(f"~/{name}: it has ")
    assert "may change what it computes: " in message
    if extra:
        assert message.endswith(", ".join(extra))
        with pytest.raises(InputError, match="may change what it computes"):
            inspect_model(tmp_path / name)
    else:
        assert message.endswith(" more") and "encoder.layers." in message
    with pytest.raises(InputError, match="may change what it computes"):
        execute(content(name, config), tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_first_few_are_named_and_all_are_counted(tmp_path: Path) -> None:
    saved(tmp_path, "m.pt", {f"extra.{number}": torch.ones(1) for number in range(7)})
    ((_, _, message),) = told(tmp_path, "m.pt", {})
    assert "it has 7 tensors" in message
    assert message.endswith("extra.0, extra.1, extra.2 and 4 more")


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_buffers_and_whole_numbers_are_nothing_to_refuse(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name, HARMLESS)
    assert told(tmp_path, name, {}) == []
    assert inspect_model(tmp_path / name)["family"] == "cpm-ant"
    execute(content(name, {}), tmp_path)


def test_published_checkpoints_have_nothing_left_over(tmp_path: Path) -> None:
    """CPM-Live saves the tensors of its model, in half precision, and no buffer and no head."""
    state = {name: tensor.half() for name, tensor in read_state(save_weights(tmp_path / "w.pt")).items()}
    torch.save(state, tmp_path / "m.pt")
    assert told(tmp_path, "m.pt", {}) == []


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("what", CHANGING)
def test_patterns_take_the_responsibility(what: str, name: str, tmp_path: Path) -> None:
    extra, config = CHANGING[what]
    saved(tmp_path, name, extra)
    patterns = list(extra) or ["encoder.layers.[12].*"]
    ((severity, code, message),) = told(tmp_path, name, config, ignore_tensors=patterns)
    assert (severity, code) == ("warning", "tensors-ignored")
    assert message.startswith(f"~/{name}: ignored as ignore_tensors asks: {next(iter(extra), 'encoder.layers.')}")
    if what in ("a LoRA adapter", "an absent sublayer"):
        assert execute(content(name, config, ignore_tensors=patterns), tmp_path)["status"] == "done"


def test_what_is_ignored_changes_no_byte_and_no_digest(tmp_path: Path) -> None:
    saved(tmp_path, "m.pt", CHANGING["a bias"][0])
    digests, small = [], []
    for number, patterns in enumerate((["*.bias"], [f"{LAYER}project_q.bias", "none.*"])):
        file = write(tmp_path, content("m.pt", {}, ignore_tensors=patterns))
        digests.append(lower(read_plan(file)).nodes[0].digest)
        execute(content("m.pt", {}, ignore_tensors=patterns), tmp_path, out=str(number))
        small.append((tmp_path / str(number) / "model/sprunec/model.safetensors").read_bytes())
    execute(content("plain.pt", {}), tmp_path, out="plain")
    assert digests[0] == digests[1]
    assert set(small) == {(tmp_path / "plain/model/sprunec/model.safetensors").read_bytes()}


def test_a_run_whose_work_is_done_is_refused_all_the_same(tmp_path: Path) -> None:
    saved(tmp_path, "m.pt", CHANGING["a bias"][0])
    execute(content("m.pt", {}, ignore_tensors=["*.bias"]), tmp_path)
    with pytest.raises(InputError, match="may change what it computes"):
        execute(content("m.pt", {}), tmp_path)


@pytest.mark.parametrize("pattern", ["none.*", "encoder.layers.0.*.weight", "*.Bias"])
def test_a_pattern_that_names_nothing_is_a_warning(pattern: str, tmp_path: Path) -> None:
    saved(tmp_path, "m.pt", CHANGING["a bias"][0])
    found = told(tmp_path, "m.pt", {}, ignore_tensors=["*.bias", pattern])
    assert [each[:2] for each in found] == [("warning", "tensors-ignored"), ("warning", "matches-nothing")]
    assert found[1][2] == f'"{pattern}" is the name of no tensor that is left over'
    fine = told(tmp_path, "plain.pt", {}, ignore_tensors=["*.bias"])
    assert [each[:2] for each in fine] == [("warning", "matches-nothing")]


def test_a_teacher_follows_the_same_rule(tmp_path: Path) -> None:
    saved(tmp_path, "teacher.pt", CHANGING["a bias"][0])
    tune = TRAIN | {"distillation": {"logits": 1.0, "teacher": "teacher.pt"}}
    for patterns, expected in (([], [("error", "checkpoint-extra")]), (["*.bias"], [("warning", "tensors-ignored")])):
        model = {"config": MODEL} | ({"ignore_tensors": patterns} if patterns else {})
        found = check_plan(write(tmp_path, plan(tune, EMIT, model=model)))[1]
        assert [(each.severity, each.code) for each in found] == expected
        assert {each.pointer for each in found} == {"/passes/0/distillation/teacher"}
    assert execute(plan(tune, EMIT, model=model), tmp_path)["status"] == "done"


def test_a_directory_is_inspected_by_the_same_rule(tmp_path: Path) -> None:
    for what, refused in (("a bias", True), ("harmless", False)):
        folder = tmp_path / what
        folder.mkdir()
        write(folder, MODEL, "config.json")
        saved(tmp_path, f"{what}/model.safetensors", HARMLESS if what == "harmless" else CHANGING[what][0])
        if refused:
            with pytest.raises(InputError, match=r"project_q\.bias"):
                inspect_model(folder)
        else:
            assert inspect_model(folder)["parameters"]["total"] > 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_what_only_torch_can_read_is_refused_by_the_run(dtype: torch.dtype, tmp_path: Path) -> None:
    """A dtype that headers do not know: the plan cannot look, so the pass does."""
    saved(tmp_path, "m.pt", {"encoder.scale": torch.ones(3).to(dtype)})
    assert told(tmp_path, "m.pt", {}) == []
    config = read_plan(write(tmp_path, content("m.pt", {}))).model.config
    (tmp_path / "loaded").mkdir()
    options, files = load.LoadOptions(config=config.to_dict()), {"checkpoint": (tmp_path / "m.pt",)}
    job = Job(options, {}, files, tmp_path / "loaded", "cpu", print)
    with pytest.raises(InputError, match=r"may change what it computes: encoder\.scale"):
        load.run(job)
