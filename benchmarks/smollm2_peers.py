"""Cut 304 of the 1536 feed-forward dims of every layer, or GONE, by another tool, as its own documentation does it.

    python benchmarks/smollm2_peers.py WAY MODEL TOKENS OUT [GONE]

    torch-pruning, magnitude    GroupMagnitudeImportance(p=2), per layer; needs no data
    torch-pruning, taylor       GroupTaylorImportance on the gradients of all batches, per layer
    optipfair, default          "MAW", by the weights of gate and up
    optipfair, data             the same with its dataloader: weights of all three times norms of activations

None of them changes a weight that stays. torch-pruning takes query heads, as many of every group, and leaves keys and
values; optipfair takes no heads; torch-kirigami cannot capture the model.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

DIMS = 1536
SLACK = 1e-9  # counts are made by rounding down


def torch_pruning(model: Any, batches: Tensor, how: str, gone: int) -> Any:
    import torch_pruning as tp

    importance = tp.importance.GroupMagnitudeImportance(p=2)
    if how == "taylor":
        importance = tp.importance.GroupTaylorImportance()
        for ids in batches.flatten(0, 1):  # a sequence at a time: gradients add up
            (model(input_ids=ids[None], labels=ids[None], use_cache=False).loss / batches.size(0)).backward()
    inner = [m for name, m in model.named_modules() if name.endswith(("gate_proj", "up_proj"))]
    pruner = tp.pruner.BasePruner(
        model,
        batches[0, :1, :64],
        importance,
        global_pruning=False,
        pruning_ratio=gone / DIMS - SLACK,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m not in inner],
        root_module_types=[nn.Linear],
        forward_fn=lambda module, ids: module(input_ids=ids, use_cache=False),
        output_transform=lambda outputs: outputs.logits.sum(),
    )
    pruner.step()
    model.config.intermediate_size = DIMS - gone
    return model


def optipfair(model: Any, batches: Tensor, how: str, gone: int) -> Any:
    from optipfair import prune_model

    share = 100 * (gone / DIMS + SLACK)
    loader = [{"input_ids": ids} for ids in batches] if how == "data" else None
    return prune_model(model, "MLP_GLU", "MAW", share, dataloader=loader, show_progress=False)


def main(way: str, model: str, tokens: str, out: str, dims: str = "304") -> None:
    gone = int(dims)
    tool, _, how = way.partition(", ")
    batches, found = torch.load(tokens), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    small = {"torch-pruning": torch_pruning, "optipfair": optipfair}[tool](found, batches, how, gone)
    assert {layer.mlp.down_proj.weight.size(1) for layer in small.model.layers} == {DIMS - gone}
    small.zero_grad()
    small.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
