"""Families of causal language models as their library has them: traced graphs against modules, masked against cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sprunec.families.huggingface.recording import NEW, past_keyword, record_calls
from sprunec.rewrite import gating, surgery
from sprunec.rewrite.recipe import make_recipe
from sprunec.rewrite.trace import TracedBlock, trace_called
from sprunec.units import Cut
from tests.helpers.causal_lms import CALLS, CONFIGS, causal_lm, token_ids
from tests.helpers.given_blocks import given_to_blocks, verify_all

Layer = dict[str, tuple[int, ...]]
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "granite", "starcoder2",
           "cohere2", "falcon")  # fmt: skip
ROTARY = "its parts change places, as those of rotary pairs do"
# Tensors that lose slices with a kv group, a head and a feed-forward dim, without ".weight" and ".bias".
Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LLAMA = ((Q, K, V, O), (Q, O), MLP)
TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(GROUPED, LLAMA),
    "phi3": (("self_attn.qkv_proj", O), ("self_attn.qkv_proj", O), ("mlp.gate_up_proj", "mlp.down_proj")),
    "starcoder2": ((Q, K, V, O), (Q, O), ("mlp.c_fc", "mlp.c_proj")),
    "olmo2": ((), (), MLP),
    "minicpm3": ((), ("self_attn.q_b_proj", "self_attn.kv_b_proj", O), MLP),
    "gpt2": ((), ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")),
    "opt": ((), (Q, K, V, "self_attn.out_proj"), ("fc1", "fc2")),
    "gpt_neox": ((), ("attention.query_key_value", "attention.dense"), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    "gptj": ((), tuple(f"attn.{name}_proj" for name in ("q", "k", "v", "out")), ("mlp.fc_in", "mlp.fc_out")),
    "bloom": (
        (),
        ("self_attention.query_key_value", "self_attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "falcon": (
        ("self_attention.query_key_value", "self_attention.dense"),
        ("self_attention.query_key_value", "self_attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
}  # fmt: skip


def traced(model: Any) -> tuple[TracedBlock, ...]:
    return trace_called(model, record_calls(model))


@pytest.mark.parametrize(("name", "attention"), CALLS)
def test_graphs_compute_what_their_modules_do_at_any_batch_and_length(name: str, attention: str) -> None:
    model = causal_lm(name, attention)
    blocks = traced(model)
    assert len(blocks) == 2
    for batch, length in ((3, 7), (2, 13), (1, 1)):
        given = given_to_blocks(model, blocks, input_ids=token_ids(batch, length), use_cache=False)
        assert {method for method, _ in given.values()} == {"forward"}
        assert verify_all(blocks, given) == 0.0
    padded = torch.ones(2, 9, dtype=torch.long)
    padded[0, :4] = 0
    given = given_to_blocks(model, blocks, input_ids=token_ids(2, 9), attention_mask=padded, use_cache=False)
    assert verify_all(blocks, given) == 0.0


@pytest.mark.parametrize(("name", "attention"), CALLS)
def test_graphs_with_a_past_compute_what_their_modules_do(name: str, attention: str) -> None:
    model = causal_lm(name, attention)
    blocks = traced(model)
    for cache, batch, new, past in ((DynamicCache(config=model.config), 2, 3, 14), (DynamicCache(), 1, 1, 5)):
        with torch.no_grad():
            model(input_ids=token_ids(batch, past), use_cache=True, **{past_keyword(model): cache})
        kept = {"use_cache": True, past_keyword(model): cache}
        given = given_to_blocks(model, blocks, input_ids=token_ids(batch, new), **kept)
        assert {method for method, _ in given.values()} == {"forward_cached"}
        # Of one query, the library lets sdpa take heads for positions, which sums in another order.
        assert verify_all(blocks, given) <= (0.0 if attention == "eager" or new > 1 else 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_sites_are_what_the_family_is_made_of(name: str) -> None:
    for block in traced(causal_lm(name)):
        group, head, dim_ff = TENSORS[name]
        found = {unit: {name.rpartition(".")[0] for name, _ in site.tensors} for unit, site in block.sites.items()}
        wanted = {"kv_group": {*group}, "head": {*head}, "dim_ff": {*dim_ff}}
        assert {unit: found[unit] for unit in found if unit != "dim_head"} == {u: n for u, n in wanted.items() if n}
        sizes = {"kv_group": 2, "head": 6, "dim_ff": 192 if name == "bloom" else 56}
        assert all(site.size == sizes.get(unit, 8) for unit, site in block.sites.items())
        assert block.sublayers() == ("attention", "feed_forward")


@pytest.mark.parametrize("name", CONFIGS)
def test_notes_say_what_cannot_be_cut_and_why(name: str) -> None:
    first, second = traced(causal_lm(name))
    reason = {"cohere2": "it is taken in steps, as pairs of rotary positions are", "minicpm3": "it is concatenated"}
    wanted = [] if name in ("gpt2", "opt", "bloom") else [f"dim_head cannot be cut: {reason.get(name, ROTARY)}"]
    if name == "olmo2":
        wanted = [f"{unit} cannot be cut: a norm counts it" for unit in ("kv_group", "head")] + wanted
    assert [note.partition(": ")[2] for note in first.notes] == wanted
    # SmolLM3's second layer has no rotary positions, nor have Cohere 2's full ones.
    assert ("dim_head" in second.sites) == (not wanted or name == "smollm3")


def kept_layers(blocks: Sequence[TracedBlock], *changes: dict[str, tuple[int, ...] | None]) -> Cut:
    """Everything but what is changed, one entry a layer; None takes all of a sublayer's units out."""
    layers: list[Layer] = []
    for block, change in zip(blocks, changes, strict=True):
        whole = {unit: site.size for unit, site in block.sites.items()} | dict(block.fixed)
        units = {unit: tuple(range(size)) for unit, size in whole.items()}
        for unit, indices in change.items():
            if indices is None:
                gone = ("kv_group", "head", "dim_head") if unit == "attention" else ("dim_ff",)
                units = {each: kept for each, kept in units.items() if each not in gone}
            elif unit in block.sites:
                units[unit] = indices
        layers.append(units)
    return Cut(layers)


def states(model: Any, ids: Tensor) -> Tensor:
    """What comes out of the last block, before a norm of the library's own rounds it to float32."""
    seen = []
    last = model.get_submodule(traced_path(model))
    handle = last.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0]


def traced_path(model: Any) -> str:
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    return f"{lists[0]}.1"


HEADS = {"grouped": (0, 2, 4, 5), "alike": (0, 3, 4)}
CUTS: dict[str, tuple[dict[str, tuple[int, ...] | None], ...]] = {
    "kv_group": ({"kv_group": (1,)}, {"kv_group": (0,)}),
    "head": ({"head": (0, 3, 4, 5)}, {"head": (1, 5)}),
    "dim_head": ({"dim_head": (0, 2, 5)}, {"dim_head": (7,)}),
    "dim_ff": ({"dim_ff": tuple(range(1, 56, 3))}, {"dim_ff": (5, 50)}),
    "attention": ({"attention": None}, {}),
    "feed_forward": ({}, {"feed_forward": None}),
    "blocks": ({"attention": None, "feed_forward": None}, {"attention": None}),
    "all at once": (
        {"kv_group": (1,), "head": (0, 3, 5), "dim_ff": (0, 9, 55)},
        {"head": (2, 4), "feed_forward": None},
    ),
}


@pytest.mark.parametrize(("name", "attention"), CALLS)
def test_masked_and_cut_models_are_equal_in_float64(name: str, attention: str) -> None:
    model, ids = causal_lm(name, attention), token_ids(2, 9)
    calls = record_calls(model)
    blocks = trace_called(model.double(), calls)
    dense = states(model, ids)
    for what, changes in CUTS.items():
        if what in ("kv_group", "head", "dim_head") and what not in blocks[0].sites:
            continue
        if what == "head" and "kv_group" in blocks[0].sites:
            changes = ({"head": (0, 2, 3, 4)}, {"head": (1, 5)})
        kept = kept_layers(blocks, *changes)
        masked, small = copy.deepcopy(model), copy.deepcopy(model)
        gating.mask(masked, [replace(b, module=masked.get_submodule(b.path)) for b in blocks], kept)
        surgery.rewrite(small, [replace(b, module=small.get_submodule(b.path)) for b in blocks], kept)
        wanted, found = states(masked, ids), states(small, ids)
        assert wanted.dtype == found.dtype == torch.float64
        assert (found - wanted).abs().max() <= 1e-10, what
        assert (wanted - dense).abs().max() > 1e-2, what
        fewer = sum(p.numel() for p in small.parameters()), sum(p.numel() for p in model.parameters())
        assert fewer[0] < fewer[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_cut_blocks_decode_with_a_past_as_in_one_forward(name: str) -> None:
    model = causal_lm(name)
    calls = record_calls(model)
    blocks = trace_called(model.double(), calls)
    given = given_to_blocks(model, blocks, input_ids=token_ids(2, 9), use_cache=False)
    some = {"kv_group": (1,), "head": (0, 3, 5) if "kv_group" in blocks[0].sites else (1, 2, 5), "dim_ff": (0, 9, 55)}
    kept = kept_layers(blocks, some, some)
    for block in blocks:
        tensors = {f"{block.path}.{key}": tensor for key, tensor in block.tensors().items()}
        cut = make_recipe([block], kept).cut(tensors)
        small = surgery.cut_block(block, kept, {key.removeprefix(f"{block.path}."): t for key, t in cut.items()})
        inputs, call = [t.double() if t.is_floating_point() else t for t in given[block.path][1]], block.calls
        with torch.no_grad():
            wanted = small.forward(*inputs)
            past = [
                example.new_empty((2, _fewer(block, example, some), 0, example.shape[-1]), device="cpu").double()
                for example in (call["forward_cached"].inputs[key] for key in ("past_key", "past_value"))
            ]
            whole, key, value = small.forward_cached(*inputs, *past)
            assert (whole - wanted).abs().max() <= 1e-10
            names, examples = call["forward"].inputs, call["forward_cached"].inputs
            last = [_last(each, examples[name]) for name, each in zip(names, inputs, strict=True)]
            found, longer, _ = small.forward_cached(*last, key[:, :, :-1], value[:, :, :-1])
        assert (found - wanted[:, -1:]).abs().max() <= 1e-10
        assert longer.shape == key.shape


def _fewer(block: TracedBlock, example: Tensor, some: Layer) -> int:
    """How many heads of keys and values are left: one group of two, or what all heads share, or of six heads.

    Where the past has a key for each head, as Falcon's has, the group that stays keeps two of them.
    """
    grouped = "kv_group" in block.sites
    heads = 2 if grouped else 3 if "head" in block.sites else 6
    return {1: 1, 2: len(some["kv_group"]) if grouped else 2}.get(example.shape[1], heads)


def _last(given: Tensor, example: Tensor) -> Tensor:
    """The last of the new positions, in whichever dim they are."""
    for dim, size in enumerate(example.shape):
        given = given.narrow(dim, given.shape[dim] - 1, 1) if size == NEW else given
    return given
