"""A safetensors checkpoint is held against the config by its header alone."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from sprunec.checkpoint.safetensors_file import read_safetensors
from sprunec.errors import InputError
from sprunec.families.base_config import removable
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.plan import check_plan
from sprunec.units import SUBLAYERS

MODEL = Path(__file__).parents[1] / "plans" / "model.json"
SIZES = json.loads(MODEL.read_text(encoding="utf-8"))
PROJECT_Q = "encoder.layers.0.self_att.self_attention.project_q.weight"


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of two bytes per number."""
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at := at + 2 * prod(shape)]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def findings(folder: Path, shapes: dict[str, tuple[int, ...]], **changes: Any) -> list[tuple[str, str]]:
    write(folder / "model.safetensors", shapes)
    plan = {
        "name": "x",
        "model": {"config": SIZES | changes, "checkpoint": "model.safetensors"},
        "passes": [{"pass": "emit"}],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    found = check_plan(folder / "plan.json")[1]
    assert {finding.pointer for finding in found} <= {"/model/checkpoint"}
    return [(f.code, f.message.removeprefix(f"{folder / 'model.safetensors'}").lstrip(": ")) for f in found]


def expected(**changes: Any) -> dict[str, tuple[int, ...]]:
    return ModelConfig.from_dict(SIZES | changes).tensors()


def test_expected_tensors_weigh_what_the_config_says() -> None:
    for changes in ({}, {"mask_modules": [[True, False], [False, True], [True, True]]}, {"tie_word_embeddings": False}):
        config = ModelConfig.from_dict(SIZES | changes)
        outside = sum(prod(shape) for name, shape in config.tensors().items() if not name.startswith("encoder.layers."))
        assert outside + removable(config, SUBLAYERS) == config.parameters()


def test_expected_tensors_follow_each_layer() -> None:
    cut = [{"heads": 2, "dim_head": 3, "dim_ff": None}] * 3
    shapes = expected(layers=cut)
    assert shapes[PROJECT_Q] == (6, 24)
    assert shapes["position_bias.relative_attention_bias"] == (52, 4)
    assert not any(".ffn." in name for name in shapes)


def test_fitting_checkpoint_is_silent(tmp_path: Path) -> None:
    assert findings(tmp_path, expected()) == []


def test_heads_that_do_not_fit_are_named(tmp_path: Path) -> None:
    found = findings(tmp_path, expected(), dim_head=8)
    assert found == [("checkpoint-mismatch", f"{PROJECT_Q} is [24, 24] and the config says [32, 24] (11 more differ)")]


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    shapes = expected()
    del shapes[PROJECT_Q]
    assert findings(tmp_path, shapes) == [("checkpoint-mismatch", f"no tensor {PROJECT_Q}")]


def test_a_head_of_its_own_is_no_stranger(tmp_path: Path) -> None:
    assert findings(tmp_path, expected() | {"lm_head.weight": (97, 24)}) == []


def hugging_face() -> dict[str, tuple[int, ...]]:
    """Its shapes for the same model: words and prompts in one table, and a head of its own."""
    shapes = {f"cpmant.{name}": shape for name, shape in expected().items()}
    prompts, width = shapes.pop("cpmant.prompt_embedding.weight")
    words = shapes["cpmant.input_embedding.weight"][0]
    return shapes | {"cpmant.input_embedding.weight": (words + prompts, width), "lm_head.weight": (words, width)}


def test_hugging_face_names_are_read(tmp_path: Path) -> None:
    assert findings(tmp_path, hugging_face()) == []


def test_hugging_face_table_without_prompts_is_told(tmp_path: Path) -> None:
    shapes = hugging_face() | {"cpmant.input_embedding.weight": (97, 24)}
    message = "prompt_embedding.weight is [0, 24] and the config says [20, 24]"
    assert findings(tmp_path, shapes) == [("checkpoint-mismatch", message)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"{\xff}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (10).to_bytes(8, "little") + b'{"a": {}} ',
        (48).to_bytes(8, "little") + b'{"a": {"shape": [4], "data_offsets": [0, 4]}}   ',
        (48).to_bytes(8, "little") + b'{"a": {"shape": "4", "data_offsets": [0, 0]}}   ',
    ],
)
def test_broken_file_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_safetensors(path)
    assert [finding.code for finding in caught.value.diagnostics] == ["bad-checkpoint"]
