"""The code of `transformers`' causal language models as the rooms see it that know no family."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output, as_output
from sprunec.errors import PassError
from sprunec.families.base import Document, Entered, Family, Inputs, Past
from sprunec.families.gguf.file_names import of_file
from sprunec.families.gguf.model_tensors import model_outputs
from sprunec.families.huggingface import stock_files
from sprunec.families.huggingface.stock_model import called, stock_model
from sprunec.families.huggingface.transformers_card import parts
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.huggingface.whole_model import TransformersModel


def build(config: TransformersConfig) -> TransformersModel:
    """Build the plan's input model, its parameters on the meta device."""
    whole = stock_model(config)
    calls = {block.path: block.calls for block in called(config)}
    head_name, positions = config.layout.head.removesuffix(".weight"), config.sizes.get("P", sys.maxsize)
    return TransformersModel(copy.deepcopy(whole), calls, past_shapes(config), head_name, positions)


def past_shapes(config: TransformersConfig) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """Give, by block, (groups, dims) of its keys and of its values; None without attention."""
    found: list[tuple[tuple[int, int], tuple[int, int]] | None] = []
    for block, layer, whole in zip(called(config), config.layers, config.uncut.layers, strict=True):
        if "forward_cached" not in block.calls or not layer.heads:
            found.append(None)
            continue
        inputs = block.calls["forward_cached"].inputs
        key, value = inputs["past_key"].shape, inputs["past_value"].shape
        # Some classes keep what is for a group, and some what has been repeated for its heads, or what both come from.
        left = {whole.kv_groups or whole.heads: layer.kv_groups or layer.heads, whole.heads: layer.heads}
        found.append(((left.get(key[1], key[1]), key[-1]), (left.get(value[1], value[1]), value[-1])))
    return found


def initialize(model: nn.Module, seed: int) -> None:
    """Raise PassError: such models come with their weights."""
    raise PassError("a model of transformers starts from its weights: name a directory that has them")


def native_outputs(config: TransformersConfig, tensors: Tensors) -> dict[str, Output]:
    """Make the model's tensors out of a file that has all of them."""
    if of_file(tensors):
        return model_outputs(config, tensors)
    return {name: as_output(tensors, part.name) for name, part in parts(config, tensors).items()}


def arrange(
    config: TransformersConfig, rows: Sequence[Sequence[Document]], width: int, base: int = 0
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Make inputs, padded on the right, where nothing sees it.

    Where a row has several documents, `position` (B, N) says where each token is in its own; padding is another one.
    """
    ids, text = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    lengths, position = np.zeros(len(rows), dtype=np.int64), np.tile(np.arange(width), (len(rows), 1))
    for row, documents in enumerate(rows):
        tokens = np.concatenate([document.tokens for document in documents])
        ids[row, : tokens.size], text[row, : tokens.size], lengths[row] = tokens, True, tokens.size
        for end in accumulate(document.tokens.size for document in documents):
            position[row, end:] = np.arange(width - end)
    several = any(len(documents) > 1 for documents in rows)
    return {"input": ids, "length": lengths} | ({"position": position} if several else {}), text


def proceed(config: TransformersConfig, document: Document) -> dict[str, Any]:
    return {"input": torch.from_numpy(document.tokens.astype(np.int64))[None, : config.sizes.get("P")]}


def examples(config: TransformersConfig) -> dict[str, dict[str, tuple[Tensor, ...]]]:
    """Make what each block is given, on the meta device: by block path, then by method."""
    found = {}
    for block, layer, past in zip(called(config), config.layers, past_shapes(config), strict=True):
        methods = {}
        for method, call in block.calls.items():
            inputs = {name: each.float() if each.is_floating_point() else each for name, each in call.inputs.items()}
            if past is not None and "past_key" in inputs:
                for name, (groups, width) in zip(("past_key", "past_value"), past, strict=True):
                    batch, _, length, _ = inputs[name].shape
                    inputs[name] = torch.empty(batch, groups, length, width, device="meta")
            if layer.heads or method == "forward":
                methods[method] = tuple(inputs.values())
        found[block.path] = methods
    return found


def looked_up(model: TransformersModel, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """List, by table, the rows that batches look up in it."""
    return {model.table: torch.cat([batch["input"].flatten() for batch in batches])}


def decode(model: TransformersModel, inputs: Inputs, steps: int, text: int) -> tuple[Entered, list[Entered], Past]:
    """Take the longest row: in one go, and its last positions one by one behind the others."""
    row = int(inputs["length"].argmax())
    ids = inputs["input"][row : row + 1, : min(int(inputs["length"][row]), text)]
    parts, start = list[Entered](), 0
    for end in range(max(ids.size(1) - steps, 1), ids.size(1) + 1):
        parts.append(model.enter(ids[:, start:end], past=start))
        start = end
    return model.enter(ids), parts, model.empty_pasts(ids)


FAMILY = Family(
    build=build,
    called=called,
    initialize=initialize,
    native_outputs=native_outputs,
    arrange=arrange,
    proceed=proceed,
    kinds=lambda config: {},
    examples=examples,
    cache_shapes=lambda config: [shapes and shapes[0] for shapes in past_shapes(config)],
    frame=(),
    frame_class="",
    row_numbers=lambda config, width: width * config.width,
    looked_up=looked_up,
    enter=lambda model, inputs: model.enter(inputs["input"], position=inputs.get("position")),
    entrance=lambda model: model.entrance,
    head=lambda model: model.exit,
    leave=lambda model, hidden: model.leave(hidden),
    stored_names=stock_files.stored_names,
    write_huggingface=stock_files.write,
    write_shape=stock_files.write_shape,
    huggingface_texts=stock_files.texts,
    decode=decode,
)
