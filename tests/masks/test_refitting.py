"""Refitting goes sublayer by sublayer through a model as it is cut by then: held against the model's own modules.

Zero columns of the weight behind units close them there, so that no gate, trace or mask of ours takes part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.data.batches import Batch
from sprunec.families.base_config import everything
from sprunec.families.cards import native
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.masks.refitting import refit_block, refits
from sprunec.models.meta_models import empty_model, traced_shape
from sprunec.rewrite.gating import mask
from sprunec.units import Cut, Key
from tests.conftest import random_batch, tiny_config, tiny_model
from tests.helpers.block_by_block import way_through
from tests.helpers.causal_lms import causal_lm, token_ids

RIDGE = 0.05
Weights = dict[str, Tensor]


def walked(
    config: Any, tensors: Tensors, batches: list[dict[str, Tensor]], left: Cut, soft: Mapping[Key, Tensor]
) -> tuple[Weights, list[int]]:
    """What is refitted, by name; and how many parameters were in memory whenever a block was at work."""
    model, held = mask(empty_model(config), traced_shape(config), left), list[int]()
    way = way_through(config, model, tensors, [Batch(each, next(iter(each.values()))) for each in batches])
    blocks, found = {block.path: block for block in traced_shape(config)}, Weights()
    for path in way.blocks(lambda: None, lambda saved: True):
        held.append(sum(not each.is_meta for each in model.parameters()))
        found |= refit_block(way, blocks[path], refits(blocks[path], left, soft), RIDGE)
    return found, held


def by_hand(
    model: nn.Module, run: Callable[[], Sequence[Tensor]], kept: Mapping[str, list[int]], gates: Mapping[str, Tensor]
) -> Weights:
    """Fit one weight after the other to the data itself, on a model whose other weights stand behind masks already.

    Args:
        run: runs all batches, and says which positions of each are in use.
        kept: by module, the columns that are left of its weight.
        gates: by module, what columns count in the output that is wanted, where not all do.
    """
    dense = {name: model.get_submodule(name).weight.detach().clone() for name in kept}
    for name, columns in kept.items():
        closed = torch.ones(dense[name].size(1)).index_fill(0, torch.tensor(columns), 0.0).bool()
        model.get_submodule(name).weight.data[:, closed] = 0.0
    found = Weights()
    for name, columns in kept.items():
        module, seen = model.get_submodule(name), list[Tensor]()
        handle = module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
        inputs = torch.cat([x[used] for used, x in zip(run(), seen, strict=True)]).double()
        handle.remove()
        old, wanted = dense[name].double(), inputs * gates.get(name, torch.ones(1))
        strength = (inputs.square().sum(0).mean() * RIDGE).sqrt()
        more = strength * torch.eye(len(columns), dtype=torch.double)
        rows = torch.cat([inputs[:, columns], more]), torch.cat([wanted @ old.T, strength * old[:, columns].T])
        fitted = torch.linalg.lstsq(*rows).solution.T.float()
        module.weight.data[:, columns] = fitted
        found[f"{name}.weight"] = dense[name].index_copy(1, torch.tensor(columns), fitted)
    return found


def same(found: Weights, wanted: Weights, before: Tensors) -> None:
    assert list(found) == list(wanted)
    for name, weight in found.items():
        moved = float((wanted[name] - before[name]).abs().max())
        assert float((weight - wanted[name]).abs().max()) < 1e-3 * moved, name


@pytest.mark.parametrize("learned", [False, True], ids=["scored", "learned"])
def test_cpm_ants_sublayers_are_fitted_on_the_model_as_cut(learned: bool, tmp_path: Path) -> None:
    config, heads, dims = tiny_config(), [0, 2], list(range(3, 17))
    write_state(tiny_model().state_dict(), tmp_path)
    tensors, batches = open_tensors(tmp_path), [random_batch(seed=seed) for seed in range(3)]
    whole = everything(config)
    left = Cut([layer | {"head": tuple(heads), "dim_ff": tuple(dims)} for layer in whole[:-1]] + [whole[-1]])
    soft = {(0, "dim_ff"): torch.linspace(0, 1, len(whole[0]["dim_ff"]))} if learned else {}
    found, held = walked(config, tensors, batches, left, soft)
    model, width = tiny_model(), len(whole[0]["dim_head"])
    kept = dict[str, list[int]]()
    for number in range(len(whole) - 1):
        block = f"encoder.layers.{number}"
        kept[f"{block}.self_att.self_attention.attention_out"] = [h * width + d for h in heads for d in range(width)]
        kept[f"{block}.ffn.ffn.w_out"] = dims
    gates = (
        {"encoder.layers.0.ffn.ffn.w_out": soft[(0, "dim_ff")].index_fill(0, torch.tensor(dims), 1.0)} if soft else {}
    )

    def run() -> list[Tensor]:
        for batch in batches:
            model(**batch)
        return [batch["length"][:, None] > torch.arange(batch["segment"].size(1)) for batch in batches]

    same(found, by_hand(model, run, kept, gates), tensors)
    assert len({*held}) == 1


def test_groups_and_dims_of_a_model_of_transformers_are_fitted_on_the_model_as_cut(tmp_path: Path) -> None:
    model = causal_lm("llama", attention_bias=False)
    model.save_pretrained(tmp_path)
    config = TransformersConfig.from_dict(native(json.loads((tmp_path / "config.json").read_text())))
    tensors = open_tensors(tmp_path)
    batches = [{"input": token_ids(3, length), "length": torch.tensor([length] * 3)} for length in (40, 50)]
    left = Cut(
        [layer | {"kv_group": (1,), "head": (3, 4, 5), "dim_ff": tuple(range(40))} for layer in everything(config)]
    )
    found, held = walked(config, tensors, batches, left, {})
    kept = dict[str, list[int]]()
    for number in range(2):
        kept[f"model.layers.{number}.self_attn.o_proj"] = list(range(30, 60))
        kept[f"model.layers.{number}.mlp.down_proj"] = list(range(40))

    def run() -> list[Tensor]:
        for batch in batches:
            model(input_ids=batch["input"], use_cache=False)
        return [torch.ones_like(batch["input"], dtype=torch.bool) for batch in batches]

    same(found, by_hand(model, run, kept, {}), tensors)
    assert len({*held}) == 1


def test_what_is_not_cut_or_not_there_is_not_refitted() -> None:
    config = tiny_config()
    whole = everything(config)
    left = Cut([{unit: some for unit, some in layer.items() if unit == "dim_ff"} for layer in whole])
    assert all(refits(block, left, {}) == [] for block in traced_shape(config))
