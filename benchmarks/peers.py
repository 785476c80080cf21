"""Units chosen by another project's pruner, as a mask for a native plan: torch-pruning (Fang et al. 2023)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import sprunec
from sprunec.bmcook.masks.mask_forms import write_mask
from sprunec.data.batches import Packer, load_text_data
from sprunec.engines.losses import language_model_loss
from sprunec.families.base_config import everything
from sprunec.families.model_directory import read_config
from sprunec.units import Kept


def torch_pruning_dims(model: Path, data: Path, mask: Path, *, rows: int, length: int, seed: int, look: int) -> None:
    """Write the mask of half of the feed-forward dims, chosen over all layers by torch-pruning's Taylor importance.

    It takes dims only: a group of heads would run through the position bias, which all layers share.

    Args:
        model: an emitted directory.
        data: what the data pass of a run has made.
        look: how many batches it may see; those that `score-mask` would see at the start of a run of this seed.
    """
    import torch_pruning as tp

    peer, config = sprunec.load(model), read_config(model)
    batches = load_text_data(data, Packer(config, length), batch_size=rows, seed=seed)
    for batch in map(batches.batch, range(look)):
        (language_model_loss(peer, batch) / batch.target_count / look).backward()
    names = {module: name for name, module in peer.named_modules()}
    inner = {name for name in names.values() if name.endswith(("w_in.w_0", "w_in.w_1"))}
    pruner = tp.pruner.BasePruner(
        peer,
        batches.batch(0).inputs,
        tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=0.5,
        ignored_layers=[m for m, name in names.items() if isinstance(m, nn.Linear) and name not in inner],
        root_module_types=[nn.Linear],
        forward_fn=lambda module, inputs: module(**inputs),
        output_transform=lambda outputs: outputs[0].sum(),
    )
    whole = everything(config)
    kept = list(whole)
    for group in pruner.step(interactive=True):
        dependency, gone = group[0]
        layer = int(names[dependency.target.module].split(".")[2])
        left = set(whole[layer].get("dim_ff", ())) - set(gone)
        kept[layer] = {**whole[layer], "dim_ff": tuple(sorted(left))}
    write_mask(mask, "bmcook", {"dim_ff"}, whole, whole, Kept(kept))
