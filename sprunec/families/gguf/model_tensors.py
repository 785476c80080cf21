"""The tensors of a model of `transformers` out of a GGUF file: by its names, in its order, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import CHUNK_BYTES, Output, as_output, read_rows
from sprunec.families.gguf.architecture import Order
from sprunec.families.gguf.file_names import Origin, origins
from sprunec.families.gguf.orders import row_order
from sprunec.families.huggingface.transformers_config import TransformersConfig


def model_outputs(config: TransformersConfig, tensors: Tensors) -> dict[str, Output]:
    """Make the model's tensors, float32, of a file that has all of them."""
    return {name: _output(tensors, origin) for name, origin in origins(config).items()}


def _output(tensors: Tensors, origin: Origin) -> Output:
    made, shape = as_output(tensors, origin.name), tensors.shape(origin.name)
    if origin.order is Order.SAME:
        return replace(made, place=None)  # other names than the model's lie beside it
    turned = shape[::-1] if origin.order is Order.TURNED else shape  # of one dim the same
    return Output(turned, made.dtype, partial(_parts, tensors, origin))


def _parts(tensors: Tensors, origin: Origin) -> Iterator[Tensor]:
    """Make its rows in the model's order."""
    shape = tensors.shape(origin.name)
    if origin.order is Order.TURNED and len(shape) == 2:
        whole = tensors[origin.name]
        for part in whole.split(max(1, CHUNK_BYTES // (shape[0] * whole.itemsize)), dim=1):
            yield part.T.contiguous()
        return
    lies = row_order(origin.order, shape[0], origin.units)
    where = sorted(range(shape[0]), key=lies.__getitem__)  # of each of the model's rows, the file's
    for part in read_rows(tensors, origin.name, where):
        yield part - 1 if origin.order is Order.PLUS_ONE else part
