"""A model that students learn from: its weights stay as they are stored, in memory or in their files.

Each block has its own in float32 only while it works, whatever they are stored in. So a teacher in half precision takes
no more memory than its file, one that stays in its files takes that of two blocks, and both say what they say in
float32. Letters in shapes: B rows, N positions, n of them, D width, V tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.models.meta_models import empty_model
from sprunec.models.streamed import Streamed


class Teacher(Streamed):
    """A model of a config, run on a few rows at a time.

    Args:
        tensors: its weights, opened.
        in_memory: they are read now, onto the device; else each time that they are used.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors, device: torch.device, *, in_memory: bool) -> None:
        if in_memory:
            tensors = Tensors({name: tensors.copy(name).to(device) for name in tensors})
        super().__init__(family_of(config), empty_model(config).eval(), tensors, [], torch.float32, device)

    @torch.no_grad()
    def states(self, **inputs: Tensor) -> Tensor:
        """Give hidden states (B, N, D) behind the last block; whoever watches modules of `model` sees theirs."""
        self.batches = [inputs]
        with self.entrance():
            hidden, given = self.family.enter(self.model, inputs)
        for path, following in zip(self.paths, [*self.paths[1:], None], strict=True):
            with self.holding_whole(path):
                if following is not None:
                    self.read_ahead(following)
                hidden = self.model.get_submodule(path)(hidden, *given[path])
        self.leave(hidden.flatten(0, 1), range(1))  # what stands behind the blocks sees all positions at once, too
        return hidden

    @torch.no_grad()
    def project(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (n, D) behind the last block into logits (n, V); of a large head some rows at a time."""
        with self.holding(*self.family.head(self.model)):
            return self.family.leave(self.model, hidden)
