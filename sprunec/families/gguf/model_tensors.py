"""The tensors of a model of `transformers` out of a GGUF file: by its names, in its order, a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output, as_outputs
from sprunec.families.gguf.architecture import Order
from sprunec.families.gguf.file_names import Origin, origins
from sprunec.families.gguf.orders import row_order
from sprunec.families.huggingface.transformers_config import TransformersConfig


class ModelTensors(Tensors):
    """A model's tensors, each made of a file's when it is asked for.

    Args:
        tensors: of the file, float32.
        origins: by the model's names.
    """

    def __init__(self, tensors: Tensors, origins: Mapping[str, Origin]) -> None:
        shapes = {name: origin.turned(tensors.shape(origin.name)) for name, origin in origins.items()}
        super().__init__({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        self._file, self._origins = tensors, origins

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, range(self.shape(name)[0]))

    def rows(self, name: str, kept: Sequence[int], buffer: Tensor | None = None) -> Tensor:
        origin, count = self._origins[name], self.shape(name)[0]
        if origin.order is Order.TURNED and len(self.shape(name)) == 2:
            if self._strided is None or self._strided[0] != name:  # as rows that lie between each other
                self._strided = name, self._file[origin.name].T
            return self._strided[1].index_select(0, torch.tensor(kept, dtype=torch.long))
        if not isinstance(lies := row_order(origin.order, count, origin.units), range):
            kept = np.argsort(lies)[np.asarray(kept)].tolist()
        found = self._file.rows(origin.name, kept, buffer) / origin.factor
        return found - 1 if origin.order is Order.PLUS_ONE else found


def model_outputs(config: TransformersConfig, tensors: Tensors) -> dict[str, Output]:
    """Make the model's tensors, float32, of a file that has all of them."""
    return dict(as_outputs(ModelTensors(tensors, origins(config))))
