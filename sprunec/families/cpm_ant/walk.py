"""A CPM-Ant of any size, run with a few rows of its weights at a time.

The model stands on the meta device. A part's parameters are read when its code asks for them, in the arithmetic asked
for, and let go of when it has used them; only hidden states go on from part to part. Large matrices are multiplied by
some rows after the others, of the embeddings only the rows that are looked up are read, and the head is gone through a
few words at a time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.checkpoint.header import misfit
from sprunec.checkpoint.lazy import StreamedWeight, with_parameters
from sprunec.checkpoint.reader import Tensors
from sprunec.errors import InputError
from sprunec.families.cpm_ant.model import CPMAnt

Inputs = Mapping[str, Tensor]
BIAS, NORM, HEAD = "position_bias", "encoder.output_layernorm", "lm_head"
PROMPTS, SEGMENTS, WORDS = "prompt_embedding", "segment_embedding", "input_embedding"
MASKS = ("length", "context", "segment", "span")
HELD_BYTES = 32 * 2**20  # a part of up to so many is kept until it is left
CHUNK_BYTES = 8 * 2**20  # of a matrix that is streamed


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

    @property
    def words(self) -> int:
        """How many there are."""
        return self._tensors.shape(f"{WORDS}.weight")[0]

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self._tensors.shape(f"{WORDS}.weight")[1]

    @contextmanager
    def holding(self, *parts: str) -> Iterator[None]:
        """The named modules have their weights meanwhile."""
        with ExitStack() as stack:
            for part in parts:
                top = self.model.get_submodule(part)
                place_buffers(top, self.device)
                size = sum(parameter.numel() for parameter in top.parameters()) * self.dtype.itemsize
                read = self._weight if size <= HELD_BYTES else self._streamed
                stack.enter_context(with_parameters(self.model, (part,), read, hold=size <= HELD_BYTES))
            yield

    def _weight(self, name: str) -> Tensor:
        return self._cast(self._tensors[name])

    def _streamed(self, name: str) -> Any:
        """A large matrix as one that is never whole."""
        shape = self._tensors.shape(name)
        rows = max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * self.dtype.itemsize))
        if len(shape) != 2 or shape[0] <= rows:
            return self._weight(name)
        return StreamedWeight(shape, lambda some: self._cast(self._tensors.rows(name, some)), rows)

    def _cast(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        if tensor.dtype.itemsize < self.dtype.itemsize // 2:
            tensor = tensor.float()  # from half precision in two steps, which is twice as fast
        return tensor.to(self.dtype)

    @contextmanager
    def entrance(self) -> Iterator[None]:
        """`model.embed` and `model.embed_new` work meanwhile, for words of the batches."""
        rows = self._looked_up()

        def table(name: str) -> Tensor:
            """Of full size, but memory that is never touched takes none."""
            found = torch.empty(self._tensors.shape(name), dtype=self.dtype, device=self.device)
            wanted = rows[name.partition(".")[0]]
            found[wanted.to(self.device)] = self._cast(self._tensors.rows(name, wanted.tolist()))
            return found

        with with_parameters(self.model, tuple(rows), table):
            yield

    def _looked_up(self) -> dict[str, Tensor]:
        """The rows of each table that any batch reads, in order; ids behind the words mean prompts."""
        length, words = self.model.prompt_length, self.words
        text = torch.cat([batch["input"][:, length:].flatten() for batch in self.batches])
        front = torch.cat([batch["input"][:, :length].flatten() for batch in self.batches])
        found = {
            PROMPTS: torch.cat([front, (text - words).clamp(min=0)]),
            SEGMENTS: torch.cat([batch["segment"].flatten() for batch in self.batches]),
            WORDS: text.clamp(max=words - 1),
        }
        return {name: ids.unique().cpu() for name, ids in found.items()}

    def enter(self) -> None:
        with self.entrance():
            self.hidden = [self.model.embed(batch["input"], batch["segment"]) for batch in self.batches]

    def layer(self, index: int) -> nn.Module:
        return self.model.encoder.layers[index]

    def bias(self, number: int) -> Tensor:
        """The attention bias (B, H, N, N) of a batch; `BIAS` must be held."""
        return self.model.full_bias(*(self.batches[number][name] for name in MASKS))

    def leave(self, hidden: Tensor, words: range) -> Tensor:
        """The logits (rows, words) of hidden states (rows, D) behind the last block."""

        head = WORDS if self.model.lm_head is None else HEAD

        def some(name: str) -> Tensor:
            return self._cast(self._tensors.rows(name, words)) if name == f"{head}.weight" else self._weight(name)

        with with_parameters(self.model, (NORM, head), some):
            return self.model.leave(hidden)[0]

    @torch.no_grad()
    def run(self) -> None:
        """Bring all batches behind the last block."""
        self.enter()
        with self.holding(BIAS):
            biases = [self.bias(number) for number in range(len(self.batches))]
        for index in range(len(self.model.encoder.layers)):
            with self.holding(f"encoder.layers.{index}"):
                pairs = zip(self.hidden, biases, strict=True)
                self.hidden = [self.layer(index)(hidden, bias) for hidden, bias in pairs]


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
        text: so many columns behind the prompt, at most.
    """

    def __init__(self, model: CPMAnt, inputs: Inputs, steps: int = 2, text: int = sys.maxsize) -> None:
        row, prompt = int(inputs["length"].argmax()), model.prompt_length
        columns, device = min(int(inputs["length"][row]), prompt + text), inputs["input"].device
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

    def both(self) -> tuple[Tensor, Tensor]:
        """The hidden states (N, D) that decoding has come to, and those of the full forward."""
        return torch.cat(self._steps, 1)[0], self.whole[0]


def in_use(batch: Inputs) -> Tensor:
    """(B, N): the columns that are not padding."""
    return batch["length"][:, None] > torch.arange(batch["segment"].size(1), device=batch["length"].device)


def largest(difference: Tensor) -> float:
    """The largest size in a tensor; a NaN must not pass as "no difference"."""
    worst = float(difference.abs().max())
    return worst if worst == worst else float("inf")
