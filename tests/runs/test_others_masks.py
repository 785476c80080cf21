"""Others' mask files through whole runs: what comes out is the dense model with these units' weights set to zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sprunec.errors import InputError
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.causal_lms import token_ids
from tests.helpers.small_plans import write
from tests.runs.test_causal_lms import config_of_small, directory, run

HEADS, DIMS = 6, 56
KEPT_HEADS = [(1, 2, 4, 5), (0, 2, 3, 5)]  # two of each group of three
KEPT_DIMS = [tuple(range(40)), tuple(range(16, 56))]


def by_hand(folder: Path, heads: list[tuple[int, ...]], dims: list[tuple[int, ...]], ids: torch.Tensor) -> torch.Tensor:
    """What the dense model says without these units, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder / "dense").double()
    for layer, stay, fed in zip(model.model.layers, heads, dims, strict=True):
        gates = torch.zeros(HEADS).index_fill(0, torch.tensor(stay), 1.0)
        layer.self_attn.o_proj.weight.data *= gates.repeat_interleave(model.config.head_dim)
        layer.mlp.down_proj.weight.data *= torch.zeros(DIMS).index_fill(0, torch.tensor(fed), 1.0)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def small_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder / "out/model/huggingface").double()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def soft(rows: list[tuple[int, ...]], width: int) -> torch.Tensor:
    values = torch.zeros(len(rows), width)
    for row, stay in zip(values, rows, strict=True):
        row[list(stay)] = torch.linspace(0.1, 1.0, len(stay))
    return values


def zs(folder: Path) -> dict[str, Any]:
    content = {
        "head_z": soft(KEPT_HEADS, HEADS).reshape(2, 1, HEADS, 1, 1),
        "intermediate_z": soft(KEPT_DIMS, DIMS).reshape(2, 1, 1, DIMS),
        "mlp_z": torch.ones(2),
        "head_layer_z": torch.ones(2),
        "hidden_z": torch.ones(48),
    }
    torch.save(content, folder / "zs.pt")
    return {"path": "zs.pt", "threshold": 0}


def pruned_heads_and_lists(folder: Path) -> dict[str, Any]:
    pruned = {layer: [head for head in range(HEADS) if head not in stay] for layer, stay in enumerate(KEPT_HEADS)}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "pruned_heads": pruned}))
    dims = {layer: [dim for dim in range(DIMS) if dim not in stay] for layer, stay in enumerate(KEPT_DIMS)}
    (folder / "dims.json").write_text(json.dumps(dims))
    return {"path": ["dims.json", "config.json"], "lists": "removed", "lists_of": "dim_ff"}


def a_file_a_layer(folder: Path) -> dict[str, Any]:
    (folder / "flap").mkdir()
    for layer in range(2):
        masks = {"attn_mask": soft(KEPT_HEADS, HEADS)[layer] > 0, "mlp_mask": soft(KEPT_DIMS, DIMS)[layer] > 0}
        torch.save(masks, folder / f"flap/layer_{layer}.pt")
    return {"path": "flap"}


@pytest.mark.parametrize(
    "given", [pruned_heads_and_lists, *(pytest.param(each, marks=pytest.mark.slow) for each in (zs, a_file_a_layer))]
)
def test_a_model_is_cut_by_others_masks_as_by_hand(given: Any, tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    report = run(tmp_path, {"pass": "load-mask"} | given(tmp_path))
    assert report.status == "done"
    assert report.data["kept"]["attention"] == {str(layer): list(stay) for layer, stay in enumerate(KEPT_HEADS)}
    config = config_of_small(tmp_path)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (4, 2, 40)
    ids = token_ids(2, 9)
    expected = by_hand(tmp_path, KEPT_HEADS, KEPT_DIMS, ids)
    dense = by_hand(tmp_path, [tuple(range(HEADS))] * 2, [tuple(range(DIMS))] * 2, ids)
    assert (small_logits(tmp_path, ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (dense - expected).abs().max() > 1e-2 * expected.abs().max()


def planned(folder: Path, **options: Any) -> dict[str, Any]:
    passes = [{"pass": "load-mask", **options}, {"pass": "emit", "formats": ["huggingface"]}]
    return {"name": "n", "model": {"path": "dense"}, "passes": passes}


def test_a_mask_that_leaves_open_what_it_means_stops_the_run_before_any_work(tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    (tmp_path / "m.json").write_text(json.dumps({"heads": {"0": [0, 3]}}))
    with pytest.raises(InputError, match=r'm.json.*whether heads is kept or removed; say "lists": "kept" or "removed"'):
        run(tmp_path, {"pass": "load-mask", "path": "m.json"})
    assert not (tmp_path / "out/model").exists()


def test_units_that_cannot_be_cut_in_this_model_are_refused_with_the_reason(tmp_path: Path) -> None:
    directory(tmp_path, "olmo2")
    (tmp_path / "config.json").write_text(json.dumps({"pruned_heads": {"0": [0, 3]}}))
    with pytest.raises(InputError, match="head cannot be cut in this model: a norm over all heads counts them"):
        run(tmp_path, {"pass": "load-mask", "path": "config.json"})


def test_plans_are_checked_and_options_at_their_defaults_are_no_part_of_a_digest(tmp_path: Path) -> None:
    from sprunec.compiler.lower import lower

    directory(tmp_path, "qwen3")
    (tmp_path / "m.json").write_text(json.dumps({"removed": {"heads": {"0": [0, 3]}}}))
    (tmp_path / "m.safetensors").write_bytes(b"{}")
    digests = {}
    for name, options in (("plain", {}), ("same", {}), ("soft", {"threshold": 0.5}), ("lists", {"lists": "removed"})):
        nodes = lower(read_plan(write(tmp_path, planned(tmp_path, path="m.json", **options)))).nodes
        (digests[name],) = (node.digest for node in nodes if node.pass_ == "load-mask")
    assert digests["plain"] == digests["same"]
    assert len(set(digests.values())) == 3
    wrong = planned(tmp_path, path="m.json", threshold="0.5", lists="pruned", lists_of="layer")
    assert {each.pointer for each in check_plan(write(tmp_path, wrong))[1]} == {
        f"/passes/0/{key}" for key in ("threshold", "lists", "lists_of")
    }
    (told,) = check_plan(write(tmp_path, planned(tmp_path, path="m.safetensors")))[1]
    assert "not a mask file" in told.message
