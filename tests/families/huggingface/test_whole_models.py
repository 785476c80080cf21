"""What stands around the blocks: logits of rows and of sequences, and how models in training hand them over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sprunec.engines.optimizers import make_optimizer
from sprunec.engines.torch_engine import TorchEngine
from sprunec.engines.training import Training
from tests.engines.test_loop import CPU, OPTIONS
from tests.families.huggingface.test_cut_models import graphs, saved
from tests.helpers.causal_lms import families, token_ids
from tests.helpers.stock_training import learn


@pytest.mark.parametrize("name", families())
def test_logits_of_sequences_are_those_of_their_rows(name: str, tmp_path: Path) -> None:
    own, config, tensors = saved(name, tmp_path)
    model, ids = graphs(config, tensors, tmp_path), token_ids(2, 11)
    logits, hidden = model(ids)
    rows = model.leave(hidden.flatten(0, 1)).unflatten(0, (2, 11))
    assert logits.shape == rows.shape == (2, 11, config.document["vocab_size"])
    torch.testing.assert_close(logits, rows, atol=1e-6 * float(rows.detach().abs().max()), rtol=0.0)
    with torch.no_grad():
        torch.testing.assert_close(logits, own(input_ids=ids, use_cache=False).logits, atol=1e-4, rtol=1e-5)
    # FSDP2 warns of a view: what is added to it in place would lose gradients. A head with a bias gives one itself.
    assert logits._is_view() == (name == "gptj")


def in_place(_: Any, __: Any, given: dict[str, Any]) -> None:
    given["inputs_embeds"].mul_(2.0).add_(1.0)


def asking(_: Any, __: Any, given: dict[str, Any]) -> None:
    assert not bool(given["inputs_embeds"].any())


@pytest.mark.parametrize("look", [in_place, asking])
@pytest.mark.parametrize(("name", "elsewhere"), [("llama", ()), ("gpt2", ()), ("gpt2", ("transformer.wpe",))])
def test_what_stands_in_front_of_the_blocks_has_no_part_in_logits(
    name: str, elsewhere: tuple[str, ...], look: Callable[..., None], tmp_path: Path
) -> None:
    """Its weights may be elsewhere; a class may change what it is given in place, and may ask for values."""
    _, config, tensors = saved(name, tmp_path)
    model, states = graphs(config, tensors, tmp_path), torch.randn(3, 5, 48)
    wanted = F.linear(model.get_submodule(model.exit[0])(states), model.get_submodule(model.exit[-1]).weight)
    for path in elsewhere:
        model.get_submodule(path).to("meta")
    model._whole[0].base_model.register_forward_pre_hook(look, with_kwargs=True)
    torch.testing.assert_close(model.leave(states), wanted)
    torch.testing.assert_close(model.leave(states[0]), wanted[0])


DROPPING = {
    "gpt2": {"embd_pdrop": 0.5, "resid_pdrop": 0.5, "attn_pdrop": 0.5},
    "gptj": {"embd_pdrop": 0.5, "resid_pdrop": 0.5, "attn_pdrop": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "phi3": {"embd_pdrop": 0.5, "resid_pdrop": 0.5, "attention_dropout": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}


@pytest.mark.parametrize("name", DROPPING)
def test_training_draws_nothing_so_that_it_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    own, config, tensors = saved(name, tmp_path, **DROPPING[name])
    model, ids = graphs(config, tensors, tmp_path), token_ids(2, 11)
    wanted = model(ids)[0]
    assert not torch.equal(own.train()(input_ids=ids).logits, own(input_ids=ids).logits)
    assert torch.equal(model.train()(ids)[0], wanted)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in DROPPING[name]} == DROPPING[name]  # whoever trains it on may drop again


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_a_tied_table_is_one_parameter_whose_gradient_is_that_of_both_uses(name: str, tmp_path: Path) -> None:
    own, config, tensors = saved(name, tmp_path, tie_word_embeddings=True)
    model, ids = graphs(config, tensors, tmp_path), token_ids(2, 11)
    for logits in (own(input_ids=ids, use_cache=False).logits, model(ids)[0]):
        F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    theirs, ours = own.get_input_embeddings().weight, model.get_parameter(f"{model.table}.weight")
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max()), rtol=1e-4)
    (optimizer,) = make_optimizer(model, Training(**OPTIONS | {"steps": 1})).param_groups
    assert sum(each is ours for each in optimizer["params"]) == 1
    assert sum(each.numel() for each in optimizer["params"]) == config.parameters()


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "gemma3_text"])
def test_blocks_computed_again_train_as_those_that_are_kept(name: str, tmp_path: Path) -> None:
    losses, gates, weights = learn(CPU, name, tmp_path)
    found, its, again = learn(TorchEngine(CPU.place, recompute=True), name, tmp_path)
    assert losses == found and losses[-1] < losses[0] - 0.1
    assert all(torch.equal(gates[key], value) for key, value in its.items())
    assert all(torch.equal(weights[key], value) for key, value in again.items())
