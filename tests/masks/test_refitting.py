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
from transformers.pytorch_utils import Conv1D

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.data.batches import Batch
from sprunec.families.base_config import everything
from sprunec.families.cards import native
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.masks.least_squares import RIDGES
from sprunec.masks.refitting import refit_block, refits
from sprunec.models.meta_models import empty_model, traced_shape
from sprunec.rewrite.gating import mask
from sprunec.units import Cut, Key
from tests.conftest import random_batch, tiny_config, tiny_model
from tests.helpers.block_by_block import way_through
from tests.helpers.causal_lms import causal_lm, families, token_ids

RIDGE = 0.05
Weights = dict[str, Tensor]


def walked(
    config: Any,
    tensors: Tensors,
    batches: list[dict[str, Tensor]],
    left: Cut,
    soft: Mapping[Key, Tensor],
    ridges: dict[str, float] | None = None,
) -> tuple[Weights, list[int]]:
    """What is refitted, by name; and how many parameters were in memory whenever a block was at work.

    Args:
        ridges: takes those that were chosen by the last batch; None: they are given.
    """
    model, held = mask(empty_model(config), traced_shape(config), left), list[int]()
    way = way_through(config, model, tensors, [Batch(each, next(iter(each.values()))) for each in batches])
    blocks, found = {block.path: block for block in traced_shape(config)}, Weights()
    for path in way.blocks(lambda: None, lambda saved: True):
        held.append(sum(not each.is_meta for each in model.parameters()))
        seen, ridge = (len(batches), RIDGE) if ridges is None else (len(batches) - 1, None)
        new, chosen = refit_block(way, blocks[path], refits(blocks[path], left, soft), seen, ridge)
        found |= new
        if ridges is not None:
            ridges.update(chosen)
    return found, held


def by_hand(
    model: nn.Module,
    run: Callable[[], Sequence[Tensor]],
    kept: Mapping[str, list[int]],
    gates: Mapping[str, Tensor],
    ridges: dict[str, float] | None = None,
) -> Weights:
    """Fit one weight after the other to the data itself, on a model whose other weights stand behind masks already.

    Args:
        ridges: takes those that err least on the last batch when all others are fitted to; None: they are given.
        run: runs all batches, and says which positions of each are in use.
        kept: by module, the columns that are left of its weight.
        gates: by module, what columns count in the output that is wanted, where not all do.
    """
    dense = {name: outputs_first(model.get_submodule(name)).clone() for name in kept}
    for name, columns in kept.items():
        closed = torch.ones(dense[name].size(1)).index_fill(0, torch.tensor(columns), 0.0).bool()
        outputs_first(model.get_submodule(name))[:, closed] = 0.0
    found = Weights()
    for name, columns in kept.items():
        module, seen = model.get_submodule(name), list[Tensor]()
        handle = module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
        inputs = [x.reshape(*used.shape, -1)[used].double() for used, x in zip(run(), seen, strict=True)]
        handle.remove()
        old, gate = dense[name].double(), gates.get(name, torch.ones(1))
        ridge = RIDGE
        if ridges is not None:
            *first, last = inputs
            wanted = (last * gate) @ old.T
            tried = {each: last[:, columns] @ best_fit(first, old, columns, gate, each) - wanted for each in RIDGES}
            ridge = ridges[f"{name}.weight"] = min(tried, key=lambda each: float(tried[each].square().sum()))
        fitted = best_fit(inputs, old, columns, gate, ridge).T.float()
        outputs_first(module)[:, columns] = fitted
        whole = dense[name].index_copy(1, torch.tensor(columns), fitted)
        found[f"{name}.weight"] = whole.T if isinstance(module, Conv1D) else whole
    return found


def outputs_first(module: nn.Module) -> Tensor:
    """Its weight (outputs, features)."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def best_fit(inputs: list[Tensor], old: Tensor, columns: list[int], gate: Tensor, ridge: float) -> Tensor:
    """By the data (columns, outputs): rows of one feature each draw to the old weight."""
    rows = torch.cat(inputs)
    strength = (rows.square().sum(0).mean() * ridge).sqrt()
    more = strength * torch.eye(len(columns), dtype=torch.double)
    left = torch.cat([rows[:, columns], more]), torch.cat([(rows * gate) @ old.T, strength * old[:, columns].T])
    return torch.linalg.lstsq(*left).solution


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


@pytest.mark.parametrize("chosen", [False, True], ids=["given", "chosen"])
@pytest.mark.parametrize("family", families())
def test_heads_and_dims_of_a_model_of_transformers_are_fitted_on_the_model_as_cut(
    family: str, chosen: bool, tmp_path: Path
) -> None:
    model = causal_lm(family, **({"attention_bias": False} if family == "llama" else {}))
    model.save_pretrained(tmp_path)
    config = TransformersConfig.from_dict(native(json.loads((tmp_path / "config.json").read_text())))
    tensors, blocks = open_tensors(tmp_path), traced_shape(config)
    batches = [{"input": token_ids(3, length), "length": torch.tensor([length] * 3)} for length in (40, 50)]
    some = {"kv_group": (1,), "head": (3, 4, 5), "dim_ff": tuple(range(40))}
    left = Cut([layer | {unit: some[unit] for unit in some if unit in layer} for layer in everything(config)])
    ridges = tuple[dict[str, float] | None, ...](({}, {}) if chosen else (None, None))
    found, held = walked(config, tensors, batches, left, {}, ridges[0])
    listed = [each for block in blocks for sublayer in refits(block, left, {}) for each in sublayer]
    kept = {each.name.removesuffix(".weight"): list(each.kept) for each in listed}
    assert len(kept) == 2 * len(blocks)

    def run() -> list[Tensor]:
        for batch in batches:
            model(input_ids=batch["input"], use_cache=False)
        return [torch.ones_like(batch["input"], dtype=torch.bool) for batch in batches]

    same(found, by_hand(model, run, kept, {}, ridges[1]), tensors)
    assert ridges[0] == ridges[1]
    assert len({*held}) == 1


def test_what_is_not_cut_or_not_there_is_not_refitted() -> None:
    config = tiny_config()
    whole = everything(config)
    left = Cut([{unit: some for unit, some in layer.items() if unit == "dim_ff"} for layer in whole])
    assert all(refits(block, left, {}) == [] for block in traced_shape(config))
