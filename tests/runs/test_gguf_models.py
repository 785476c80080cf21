"""A GGUF file as a plan's model: what comes of it is what comes of the directory that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprunec.compiler.lower import lower
from sprunec.errors import InputError
from sprunec.execution.execute import execute
from sprunec.formats.gguf import FILE, TOKENIZER, write
from sprunec.plan.export_formats import Emission
from sprunec.plan.plan import check_plan, read_plan
from tests.families.gguf.test_model_tensors import CHANGES
from tests.helpers.gguf_files import cut
from tests.runs.test_causal_lms import EMIT, directory

FAMILIES = [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
CUT = {
    "pass": "score-mask",
    "criterion": "magnitude",
    "unit": "dim_ff",
    "target": {"dim_ff": 40},
    "budget": "per-layer",
}
TEXT = "The try statement 123\n  names handlers"


def made(folder: Path, name: str, kind: str = "keep", **changes: Any) -> Path:
    """Write a model with its tokenizer as a directory, and as a file."""
    dense = directory(folder, name, **CHANGES[name] | changes)
    config = cut(AutoModelForCausalLM.from_pretrained(dense), folder)
    vocabulary = tuple(path for each in TOKENIZER if (path := dense / each).is_file())
    write(
        Emission(folder / "small", dense, config, {"gguf": {"type": kind}}, {"vocabulary": vocabulary}), folder / "gguf"
    )
    return dense


def run(folder: Path, path: str, emit: Any = EMIT, **data: Any) -> tuple[dict[str, Tensor], Path, Any]:
    """Run the plan on a model, and give what it has emitted as a directory."""
    content = {
        "name": "small",
        "model": {"path": path},
        "data": {"source": "python-docs", "max_length": 32, "batch_size": 4} | data,
        "evaluate": {"tokens": 200},
        "passes": [CUT, emit],
    }
    (folder / "plan.json").write_text(json.dumps(content))
    out = folder / f"out-{Path(path).name}"
    report = execute(lower(read_plan(folder / "plan.json")), out)
    small = out / "model/huggingface"
    return load_file(small / "model.safetensors"), small, report


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_what_its_directory_gives(name: str, tmp_path: Path) -> None:
    made(tmp_path, name)
    (wanted, first, _), (found, small, report) = run(tmp_path, "dense"), run(tmp_path, f"gguf/{FILE}")
    assert found.keys() == wanted.keys()
    for tensor in wanted:  # Gemma's norms lie there plus one, which rounds them
        assert (found[tensor] - wanted[tensor]).abs().max() <= (1.2e-7 if "norm" in tensor and "gemma" in name else 0)
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        said, same = (AutoModelForCausalLM.from_pretrained(each).double()(ids).logits for each in (small, first))
    assert (said - same).abs().max() <= (1e-4 if "gemma" in name else 0)
    own, other = (AutoTokenizer.from_pretrained(each) for each in (first, small))
    assert own(TEXT).input_ids == other(TEXT).input_ids
    assert own.eos_token == other.eos_token
    assert report.status == "done"


def test_a_file_made_of_a_file_has_its_tokenizer(tmp_path: Path) -> None:
    made(tmp_path, "llama")
    _, small, report = run(tmp_path, f"gguf/{FILE}", EMIT | {"formats": ["huggingface", "gguf"]})
    given, found = (GGUFReader(file).fields for file in (tmp_path / "gguf" / FILE, small.parent / "gguf" / FILE))
    keys = {key for key in given if key.startswith("tokenizer.")}
    assert report.status == "done" and len(keys) > 5
    assert keys == {key for key in found if key.startswith("tokenizer.")}
    assert all(found[key].contents() == given[key].contents() for key in keys)
    assert found["llama.feed_forward_length"].contents() == 40


@pytest.mark.slow
def test_packed_numbers_are_taken_as_the_package_has_them_and_that_is_said(tmp_path: Path) -> None:
    made(tmp_path, "llama", "q8_0", hidden_size=64, intermediate_size=64, num_attention_heads=8)
    found, small, _ = run(tmp_path, f"gguf/{FILE}")
    own = next(each for each in GGUFReader(tmp_path / "gguf" / FILE).tensors if each.name == "output.weight")
    assert own.tensor_type == GGMLQuantizationType.Q8_0
    assert found["lm_head.weight"].equal(torch.from_numpy(quants.dequantize(own.data, own.tensor_type).copy()))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert "Q8_0" in (report := (small.parents[1] / "report.json").read_text()) and "taken as float32" in report


def test_a_file_whose_tokenizer_is_not_known_is_warned_of_and_takes_another(tmp_path: Path) -> None:
    dense = made(tmp_path, "llama")
    path = tmp_path / "gguf" / FILE
    path.write_bytes(path.read_bytes().replace(b"gpt-2", b"gpt-9"))
    content: dict[str, Any] = {"name": "x", "model": {"path": str(path)}, "data": {"source": "python-docs"}}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(content | {"passes": [CUT, EMIT]}))
    assert any("'gpt-9', is not known here" in found.message for found in check_plan(plan)[1])
    content["data"]["tokenizer"] = str(dense / "tokenizer.json")
    plan.write_text(json.dumps(content | {"passes": [CUT, EMIT]}))
    assert not any("gpt-9" in found.message for found in check_plan(plan)[1])


def test_a_file_that_was_cut_short_is_told_where_the_plan_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(8))
    content = {"name": "x", "model": {"path": "x.gguf"}, "data": {"source": "python-docs"}, "passes": [CUT, EMIT]}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="x.gguf.*goes on behind its 16 bytes") as told:
        read_plan(tmp_path / "plan.json")
    assert told.value.exit_code == 3
