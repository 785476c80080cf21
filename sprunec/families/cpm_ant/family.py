"""CPM-Ant as the rooms see it that know no family; see `families/base.py`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sprunec.families.base import Entered, Family, Given, Inputs, Past
from sprunec.families.cpm_ant import huggingface_files, modules
from sprunec.families.cpm_ant import model as frame
from sprunec.families.cpm_ant.blocks import block_kinds, build, cache_shapes, example_inputs, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.inputs import arrange, proceed
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.cpm_ant.scaling import native_outputs
from sprunec.families.module_lists import blocks

VISIBLE = ("length", "context", "segment", "span")  # what decides who sees whom


def looked_up(model: CPMAnt, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """List, by table, the rows that batches look up in it; ids from vocab_size on mean prompts."""
    length, count = model.prompt_length, model.input_embedding.weight.size(0)
    given = list(batches)
    front = torch.cat([batch["input"][:, :length].flatten() for batch in given])
    text = torch.cat([batch["input"][:, length:].flatten() for batch in given])
    return {
        "prompt_embedding": torch.cat([front, (text - count).clamp(min=0)]),
        "segment_embedding": torch.cat([batch["segment"].flatten() for batch in given]),
        "input_embedding": text.clamp(max=count - 1),
    }


def enter(model: CPMAnt, inputs: Inputs) -> Entered:
    """Look tokens up, and make the attention bias (B, H, N, N), which all layers read."""
    bias = model.full_bias(*(inputs[name] for name in VISIBLE))
    return model.embed(inputs["input"], inputs["segment"]), for_all(model, bias)


def for_all(model: CPMAnt, bias: Tensor) -> Given:
    return {path: (bias,) for path, _ in blocks(model)}


def head(model: CPMAnt) -> tuple[str, ...]:
    return "encoder.output_layernorm", "input_embedding" if model.lm_head is None else "lm_head"


def row_numbers(config: ModelConfig, width: int) -> int:
    """Count a row's numbers in its hidden states, or in its attention bias."""
    return width * max(config.dim_model, config.num_heads * width)


def decode(model: CPMAnt, inputs: Inputs, steps: int, text: int) -> tuple[Entered, list[Entered], Past]:
    """Take the longest row as a text to go on writing: what was visible from before it would make them differ."""
    row, prompt = int(inputs["length"].argmax()), model.prompt_length
    width, device = min(int(inputs["length"][row]), prompt + text), inputs["input"].device
    one = {name: tensor[row : row + 1, ..., :width] for name, tensor in inputs.items() if tensor.dim() == 2}
    one["context"] = (torch.arange(width, device=device) < prompt)[None]
    one["length"] = torch.tensor([width], device=device)
    parts, start = [], 0
    for end in range(max(width - steps, prompt + 1), width + 1):
        new, seen = one["input"][:, start:end], {name: one[name][:, :end] for name in VISIBLE[1:]}
        hidden = model.embed_new(new, seen["segment"], first=start == 0)
        bias = model.cached_bias(new.size(1), one["length"] - width + end - prompt, **seen)
        parts.append((hidden, for_all(model, bias)))
        start = end
    return enter(model, one), parts, model.empty_past(1)


FAMILY = Family(
    build=build,
    called=None,
    initialize=initialize,
    native_outputs=native_outputs,
    arrange=arrange,
    proceed=proceed,
    kinds=block_kinds,
    examples=example_inputs,
    cache_shapes=cache_shapes,
    frame=(modules, frame),
    frame_class="CPMAnt",
    row_numbers=row_numbers,
    looked_up=looked_up,
    enter=enter,
    entrance=lambda model: ("position_bias",),
    head=head,
    leave=lambda model, hidden: model.leave(hidden)[0],
    stored_names=lambda config: {},
    write_huggingface=huggingface_files.write,
    write_shape=huggingface_files.write_shape,
    huggingface_texts=huggingface_files.texts,
    decode=decode,
)
