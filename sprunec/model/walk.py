"""A CPM-Ant of any size, run with the weights of one part at a time.

The model stands on the meta device. Embeddings, one block after the other, then the last norm and the head are given
their tensors, in the arithmetic asked for, and lose them again; only hidden states go on from part to part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sprunec.errors import InputError
from sprunec.model.frame import CPMAnt
from sprunec.model.shapes import misfit
from sprunec.model.tensors import Tensors

Inputs = Mapping[str, Tensor]
ENTRANCE = ("prompt_embedding", "segment_embedding", "input_embedding")
BIAS = "position_bias"
MASKS = ("length", "context", "segment", "span")
ROWS_AT_ONCE = 256


class Walk:
    """Batches on their way through a model.

    Args:
        model: on the meta device, but for its indices and gates; several walks may share one.
        tensors: by the model's names, all of them and no others.
        batches: inputs of `CPMAnt.forward`, on `device`.

    Attributes:
        hidden: (B, N, D) of each batch, behind the part that it has come through last.

    Raises:
        InputError: the tensors are not the model's.
    """

    def __init__(
        self, model: CPMAnt, tensors: Tensors, batches: Sequence[Inputs], dtype: torch.dtype, device: torch.device
    ) -> None:
        problem = misfit({name: tuple(t.shape) for name, t in model.state_dict().items()}, tensors.shapes())
        if problem:
            raise InputError.at("the weights", f"do not fit the model: {problem}")
        self.model, self.batches, self.dtype, self.device = model, list(batches), dtype, device
        self.hidden: list[Tensor] = []
        self._tensors = tensors

    @contextmanager
    def holding(self, *parts: str) -> Iterator[None]:
        """The named modules have their weights meanwhile."""
        modules = {name: self.model.get_submodule(name) for name in parts}
        empty = {name: module.state_dict() for name, module in modules.items()}
        try:
            for name, module in modules.items():
                weights = {key: self._weight(f"{name}.{key}") for key in empty[name]}
                module.load_state_dict(weights, strict=True, assign=True)
                place_buffers(module, self.device)
            yield
        finally:
            for name, module in modules.items():
                module.load_state_dict(empty[name], strict=True, assign=True)

    def _weight(self, name: str) -> Tensor:
        tensor = self._tensors[name].to(self.device)
        if tensor.dtype.itemsize < self.dtype.itemsize // 2:
            tensor = tensor.float()  # from half precision in two steps, which is twice as fast
        return tensor.to(self.dtype)

    def enter(self) -> None:
        with self.holding(*ENTRANCE):
            self.hidden = [self.model.embed(batch["input"], batch["segment"]) for batch in self.batches]

    def layer(self, index: int) -> nn.Module:
        return self.model.encoder.layers[index]

    def bias(self, number: int) -> Tensor:
        """The attention bias (B, H, N, N) of a batch; `BIAS` must be held."""
        return self.model.full_bias(*(self.batches[number][name] for name in MASKS))

    def logits(self, number: int, used: Tensor) -> Iterator[Tensor]:
        """(rows, V) of the columns `used` (B, N) of a batch, a few at a time; `exit_of` the model must be held."""
        for rows in self.hidden[number][used].split(ROWS_AT_ONCE):
            yield self.model.leave(rows)[0]


def exit_of(model: CPMAnt) -> tuple[str, str]:
    """The parts behind the last block: the norm, and what words are projected on."""
    return "encoder.output_layernorm", "input_embedding" if model.lm_head is None else "lm_head"


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Indices and gates are no weights: they are there all the time."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


class Decoding:
    """The last columns of a row, decoded one by one with past keys and values, beside one full forward.

    The longest row is taken for a text to go on writing: a column that was visible from before would make them differ.

    Args:
        model: with the weights of its entrance and of its bias table.
        inputs: a batch for `CPMAnt.forward`.
    """

    def __init__(self, model: CPMAnt, inputs: Inputs, steps: int = 4) -> None:
        row, prompt = int(inputs["length"].argmax()), model.prompt_length
        columns, device = int(inputs["length"][row]), inputs["input"].device
        one = {name: tensor[row : row + 1, ..., :columns] for name, tensor in inputs.items() if tensor.dim() == 2}
        one["context"] = (torch.arange(columns, device=device) < prompt)[None]
        length = torch.tensor([columns], device=device)
        self.whole = model.embed(one["input"], one["segment"])
        self._bias = model.full_bias(length, *(one[name] for name in MASKS[1:]))
        self._empty = model.empty_past(1)
        self._steps: list[Tensor] = []
        self._biases: list[Tensor] = []
        start = 0
        for end in range(max(columns - steps, prompt + 1), columns + 1):
            new, seen = one["input"][:, start:end], {name: one[name][:, :end] for name in MASKS[1:]}
            self._steps.append(model.embed_new(new, seen["segment"], first=start == 0))
            self._biases.append(model.cached_bias(new.size(1), length - columns + end - prompt, **seen))
            start = end

    def through(self, index: int, layer: nn.Module) -> None:
        """Go through the block, which has its weights."""
        self.whole = layer(self.whole, self._bias)
        past = self._empty[index] or (None, None)
        for number, bias in enumerate(self._biases):
            self._steps[number], *past = layer.forward_cached(self._steps[number], bias, *past)  # type: ignore[operator]

    def difference(self, model: CPMAnt) -> float:
        """Between the logits of both ways; the model has the weights of its exit."""
        gap = model.leave(torch.cat(self._steps, 1))[0] - model.leave(self.whole)[0]
        return largest(gap)


@torch.no_grad()
def cached_difference(model: CPMAnt, inputs: Inputs) -> float:
    """How far a model's own decoding is from its forward; the model has all its weights."""
    decoding = Decoding(model, inputs)
    for index, layer in enumerate(model.encoder.layers):
        decoding.through(index, layer)
    return decoding.difference(model)


def largest(difference: Tensor) -> float:
    """The largest size in a tensor; a NaN must not pass as "no difference"."""
    worst = float(difference.abs().max())
    return worst if worst == worst else float("inf")
