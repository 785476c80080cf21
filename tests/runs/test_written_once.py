"""Weights that several artifacts and formats have in common lie on the disk once, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sprunec
from sprunec.checkpoint import writer
from sprunec.checkpoint.reader import open_tensors
from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.families.model_directory import read_kept
from sprunec.formats import huggingface
from sprunec.passes.compare import run_code
from sprunec.plan.plan import read_plan
from tests.helpers.causal_lms import token_ids
from tests.helpers.small_plans import MODEL, artifact, save_weights
from tests.runs.test_causal_lms import directory

LLAMA: dict[str, Any] = {"num_hidden_layers": 3, "attention_bias": False, "tie_word_embeddings": False}
CUTS: dict[str, dict[str, Any]] = {
    "widths": {"unit": "dim_ff", "target": {"dim_ff": 40}, "budget": "per-layer"},
    "unlike layers": {"unit": "dim_ff", "target": {"sparsity": 0.5}},
    "a block": {"unit": "block", "target": {"num_layers": 2}},
}


def emitted(folder: Path, model: dict[str, Any], cut: dict[str, Any], *formats: str) -> Any:
    passes = [{"pass": "score-mask", "criterion": "magnitude"} | cut, {"pass": "emit", "formats": list(formats)}]
    (folder / "plan.json").write_text(json.dumps({"name": "once", "model": model, "passes": passes}))
    return execute(lower(read_plan(folder / "plan.json")), folder / "out").data


def written(folder: Path) -> set[tuple[int, int]]:
    """What of at least a tensor's size there is, by inode, links to the user's file left out."""
    files = [
        file for file in folder.rglob("*.safetensors") if not file.is_symlink() and file.name != "scores.safetensors"
    ]
    return {(file.stat().st_ino, file.stat().st_size) for file in files}


@pytest.mark.parametrize(
    ("cut", "sharded", "whole"),
    [
        pytest.param("widths", False, False, marks=pytest.mark.slow),
        ("unlike layers", True, True),
        pytest.param("a block", False, True, marks=pytest.mark.slow),
        pytest.param("widths", True, True, marks=pytest.mark.slow),
        pytest.param("unlike layers", False, False, marks=pytest.mark.slow),
        pytest.param("a block", True, False, marks=pytest.mark.slow),
    ],
)
def test_a_small_llama_is_written_once(
    cut: str, sharded: bool, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sharded:
        monkeypatch.setattr(writer.write_outputs, "__defaults__", (20_000,))
    if not whole:
        monkeypatch.setattr(huggingface, "HELD_BYTES", 0)
    directory(tmp_path, "llama", torch.bfloat16, **LLAMA)
    report = emitted(tmp_path, {"path": "dense"}, CUTS[cut], "huggingface", "deci")
    assert report["status"] == "done" and report["formats"].keys() == {"huggingface", "deci"}
    assert report["formats"]["huggingface"]["decoding_difference"] < 1e-4
    found = written(tmp_path / "out")
    assert (len(found) > 2) == sharded
    bytes_of = 2 * report["models"]["small"]["parameters"]
    assert bytes_of < sum(size for _, size in found) < bytes_of + 4000 * len(found)
    for form in ("huggingface", "deci"):
        assert written(tmp_path / "out/model" / form) == found
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = tmp_path / "out/model/huggingface"
    small = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=cut == "unlike layers")
    assert sum(map(torch.numel, small.parameters())) == report["models"]["small"]["parameters"]
    assert small(input_ids=token_ids(1, 5)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("cut", "own"), [pytest.param("widths", False, marks=pytest.mark.slow), ("unlike layers", True)]
)
def test_shards_of_a_model_of_our_own_are_opened_by_its_own_code(
    cut: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "HELD_BYTES", 0)
    monkeypatch.setattr(writer.write_outputs, "__defaults__", (9_000,))
    save_weights(tmp_path / "weights.pt")
    model = {"config": MODEL, "checkpoint": "weights.pt"}
    report = emitted(tmp_path, model, CUTS[cut], "sprunec", "huggingface")
    out = tmp_path / "out/model"
    assert report["formats"]["huggingface"].get("own_code", False) == own
    assert report["status"] == "done" and all(len(written(out / form)) > 2 for form in ("sprunec", "huggingface"))
    ours, its = sprunec.load(out / "sprunec").state_dict(), run_code(out / "sprunec").load(out / "sprunec").state_dict()
    assert ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)


@pytest.mark.slow
def test_what_is_changed_where_it_was_published_is_made_again(tmp_path: Path) -> None:
    """The store has the same file, and sees that it is no longer what it was."""
    directory(tmp_path, "llama", **LLAMA)
    emitted(tmp_path, {"path": "dense"}, CUTS["a block"], "huggingface")
    file = tmp_path / "out/model/huggingface/model.safetensors"
    before = file.read_bytes()
    with file.open("r+b") as stream:
        stream.seek(-8, 2)
        stream.write(bytes(8))
    report = emitted(tmp_path, {"path": "dense"}, CUTS["a block"], "huggingface")
    assert report["status"] == "done" and file.read_bytes() == before


@pytest.mark.parametrize(
    "gone",
    [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2],
    ids=["first", "middle", "last"],
)
def test_weights_refitted_after_a_block_has_gone_are_those_that_are_emitted(gone: int, tmp_path: Path) -> None:
    """By then the layers are numbered anew on disk; what a second cut emits is a slice of what was refitted."""
    file = directory(tmp_path, "llama", **LLAMA) / "model.safetensors"
    weak = {name: tensor * 0.01 if f".layers.{gone}." in name else tensor for name, tensor in load_file(file).items()}
    save_file(weak, file, {"format": "pt"})  # it is the one that goes
    cut = {"pass": "score-mask", "criterion": "activation", "unit": "dim_ff", "target": {"dim_ff": 40}}
    passes = [
        {"pass": "score-mask", "criterion": "magnitude"} | CUTS["a block"],
        cut | {"budget": "per-layer", "compensate": "least-squares"},
        {"pass": "emit", "formats": ["huggingface"]},
    ]
    data = {"source": "python-docs", "max_length": 32, "batch_size": 4}
    content = {"name": "twice", "model": {"path": "dense"}, "data": data, "passes": passes}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    report = execute(lower(read_plan(tmp_path / "plan.json")), tmp_path / "out").data
    assert report["status"] == "done"
    digests = {entry["pass"]: entry["digest"] for entry in reversed(report["passes"])}  # of the first of each
    folders = [tmp_path / "out/store" / digests[name] for name in ("rewrite", "compensate")]
    small = open_tensors(tmp_path / "out/model/huggingface")
    layers = list(read_kept(artifact(tmp_path / "out", "rewrite")))
    assert not layers.pop(gone)
    dims = [layer["dim_ff"] for layer in layers]
    assert len(dims) == 2 and set(map(len, dims)) == {40}
    for number, kept in enumerate(map(list, dims)):
        name = f"model.layers.{number}.mlp.down_proj.weight"
        before, refitted = (open_tensors(folder)[name] for folder in folders)
        assert torch.equal(small[name], refitted[:, kept])
        assert (refitted[:, kept] - before[:, kept]).abs().max() > 1e-3
