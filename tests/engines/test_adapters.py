"""Adapters train as peft's do on the stock class, and are merged into the weights that the model computes with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

import sprunec.engines.adapters as adapters_module
from sprunec.data.batches import Batch
from sprunec.engines.adapters import NAME, Adapters, adapt, as_modules, largest_difference, some_logits
from sprunec.engines.loop import fit
from sprunec.engines.training import Adapter
from sprunec.errors import InputError, PassError
from sprunec.families.module_lists import blocks
from sprunec.families.tensor_names import projections
from sprunec.models.meta_models import traced
from sprunec.rewrite.gating import insert_gates
from tests.conftest import tiny_model
from tests.engines.test_loop import CPU, TRAINING
from tests.helpers.causal_lms import token_ids
from tests.helpers.cut_lms import graphs, saved

FAMILIES = ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox"]
LORA = Adapter(kind="lora", rank=4, alpha=8.0, targets=("attention", "feed_forward"))
STEPS, RATE = 3, 1e-2
HOW = replace(TRAINING, steps=STEPS, learning_rate=RATE, clip_grad=None)


def batch(step: int) -> Batch:
    ids = token_ids(2, 9 + step)
    return Batch({"input": ids, "length": torch.tensor([9 + step] * 2)}, ids.roll(-1, 1))


def adapted(name: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any, Adapters]:
    stock, config, tensors = saved(name, folder, dtype)
    model = graphs(config, tensors, folder)
    lora = replace(LORA, **changes)
    return stock, model, adapt(model, lora, projections(config, lora.targets), tensors.dtype, 5)


def learned(model: nn.Module) -> list[float]:
    events: list[dict[str, Any]] = []
    fit(model, batch, HOW, CPU, first_step=0, report=events.append)
    return [event["loss"] for event in events]


def stock_steps(model: Any) -> list[float]:
    parameters, losses = [p for p in model.parameters() if p.requires_grad], []
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    for step in range(STEPS):
        data = batch(step)
        logits = model(input_ids=data.inputs["input"], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), data.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", FAMILIES)
def test_they_learn_as_peft_s_on_the_stock_class(name: str, tmp_path: Path) -> None:
    stock, model, adapters = adapted(name, tmp_path)
    turned = name == "gpt2"
    options = LoraConfig(r=4, lora_alpha=8, target_modules=[*adapters.layers], fan_in_fan_out=turned)
    inject_adapter_in_model(options, stock, NAME)
    started = {n: p for n, p in model.named_parameters() if p.requires_grad}
    same = stock.load_state_dict(started, strict=False)
    assert not same.unexpected_keys and len(started) == 2 * len(adapters.layers)
    assert len(started) == len([p for p in stock.parameters() if p.requires_grad])
    assert learned(model) == pytest.approx(stock_steps(stock), abs=1e-5)
    found = adapters.merged(model.state_dict())
    for path in adapters.layers:
        layer, before = stock.get_submodule(path), stock.get_submodule(path).get_base_layer().weight.clone()
        layer.merge()
        wanted = layer.get_base_layer().weight
        assert torch.allclose(found[f"{path}.weight"], wanted, atol=1e-5)
        assert float((wanted - before).abs().max()) > 1e-3  # it has learned


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_the_model_computes_what_it_computed_with_them(name: str, tmp_path: Path) -> None:
    _, model, adapters = adapted(name, tmp_path)
    learned(model)
    found = adapters.check(lambda: some_logits(model.eval(), batch(0)))
    assert found["merge_difference"] <= found["merge_tolerance"] < 1e-3
    logits = some_logits(model, batch(0)).detach()
    _, config, tensors = saved(name, tmp_path)
    plain = graphs(config, tensors, tmp_path)
    before = some_logits(plain.requires_grad_(False), batch(0))
    plain.load_state_dict(adapters.merged(model.state_dict()))
    assert largest_difference(some_logits(plain, batch(0)), logits) <= found["merge_tolerance"]
    assert largest_difference(before, logits) > 0.05


def test_a_merge_that_is_wrong_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, adapters = adapted("llama", tmp_path)
    learned(model)
    right = adapters_module.merge
    monkeypatch.setattr(adapters_module, "merge", lambda *given: 1.001 * right(*given))
    with pytest.raises(PassError, match=r"with its adapters merged the model's logits differ by .* is noise"):
        adapters.check(lambda: some_logits(model.eval(), batch(0)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_base_in_half_precision_changes_nothing_but_memory(name: str, tmp_path: Path) -> None:
    _, model, adapters = adapted(name, tmp_path, torch.bfloat16)
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    bases = {layer.base_layer.weight.dtype for layer in adapters.layers.values()}
    assert (kinds, bases) == ({torch.float32}, {torch.bfloat16})
    _, wide, others = adapted(name, tmp_path, torch.bfloat16)
    for layer in others.layers.values():
        layer.base_layer.weight.data = layer.base_layer.weight.data.float()
    assert learned(model) == pytest.approx(learned(wide), abs=1e-6)
    found, wanted = adapters.merged(model.state_dict()), others.merged(wide.state_dict())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert max(float((found[each] - wanted[each]).abs().max()) for each in wanted) < 1e-6


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    ("stored", "computed"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_a_sum_in_place_is_what_pefts_layer_computes(
    name: str, stored: torch.dtype, computed: torch.dtype | None, tmp_path: Path
) -> None:
    _, _, adapters = adapted(name, tmp_path, stored)
    precision, near = torch.autocast("cpu", computed, enabled=computed is not None), 1e-5 if computed is None else 2e-2
    for layer in adapters.layers.values():
        layer.lora_B["default"].weight.data.normal_(std=0.1)
        found = list[tuple[Tensor, ...]]()
        for forward in (layer, partial(type(layer).forward, layer)):
            input = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1)).requires_grad_()
            with precision:
                output = forward(input)
            trained = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            found.append((output, *torch.autograd.grad(output.float().square().sum(), [input, *trained])))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=near, atol=near * float(theirs.detach().abs().max()))


def test_only_what_is_named_learns(tmp_path: Path) -> None:
    _, model, adapters = adapted("llama", tmp_path, targets=("q_proj", "*.1.mlp.down_proj.weight"))
    layers = [f"model.layers.{number}.self_attn.q_proj" for number in (0, 1)]
    assert [*adapters.layers] == [*layers, "model.layers.1.mlp.down_proj"]
    before = {name: tensor.clone() for name, tensor in graphs_state(tmp_path).items()}
    learned(model)
    after = adapters.merged(model.state_dict())
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {f"{path}.weight" for path in adapters.layers}
    with pytest.raises(InputError, match="no product of what is left is by one of its targets"):
        adapted("llama", tmp_path, targets=("embed_tokens",))


def graphs_state(folder: Path) -> dict[str, Tensor]:
    _, config, tensors = saved("llama", folder)
    state: dict[str, Tensor] = graphs(config, tensors, folder).state_dict()
    return state


@pytest.mark.parametrize("name", [*FAMILIES, "cpm-ant"])
def test_products_made_modules_give_the_same_numbers(name: str, tmp_path: Path) -> None:
    """With gates between them, and with all weights under their names."""
    if name == "cpm-ant":
        model = tiny_model()
        assert sum(len(as_modules(block)) for _, block in blocks(model)) == 7 * 3
        return
    _, config, tensors = saved(name, tmp_path)
    model = graphs(config, tensors, tmp_path)
    gates = insert_gates(model, traced(model, config), ["head", "dim_ff"])
    for (index, unit), size in gates.sizes.items():
        gates.set(index, unit, torch.linspace(0.5, 1.0, size))
    before, names = some_logits(model, batch(0)), [*model.state_dict()]
    made = [path for _, block in blocks(model) for path in as_modules(block)]
    assert len(made) == len(projections(config, ["attention", "feed_forward"])) > 0
    assert torch.equal(some_logits(model, batch(0)), before)
    assert sorted(model.state_dict()) == sorted(names)
