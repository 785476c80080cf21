"""A model in memory, gone through block by block as passes go through one on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.families.base import family_of
from sprunec.families.base_config import unit_sizes
from sprunec.masks.calibration import STATISTICS, score_blocks
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.hidden_states import HiddenStates
from sprunec.models.meta_models import empty_model, traced_shape
from sprunec.models.streamed import Streamed
from sprunec.plan.declared import CRITERIA
from sprunec.rewrite.gating import insert_gates
from sprunec.units import Key, gate_units

CPU = Place(torch.device("cpu"), torch.float32)


def way_through(config: Any, model: nn.Module, tensors: Tensors, batches: Sequence[Batch], **more: Any) -> BlockByBlock:
    """Put batches in front of a model without weights; `more` is what the way through it takes besides."""
    inputs = [batch.inputs for batch in batches]
    stream = Streamed(family_of(config), model.eval(), tensors, inputs, torch.float32, CPU.device)
    return more.pop("kind", BlockByBlock)(stream, batches, more.pop("hidden", HiddenStates(CPU)), **more)


def scored(
    config: Any, state: Mapping[str, Tensor], batches: Sequence[Batch], criterion: str, *units: str, **more: Any
) -> dict[Key, Tensor]:
    """Score the units of a model by a criterion that looks at blocks."""
    model, blocks, row = empty_model(config), traced_shape(config), CRITERIA[criterion]
    insert_gates(model, blocks, gate_units(units))
    way = way_through(config, model, Tensors(state), batches, **more)
    return score_blocks(way, blocks, unit_sizes(config, units), STATISTICS[row.needs], row.score)
