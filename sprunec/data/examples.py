"""From examples to the rows of a batch. Letters: n tokens of a text, P prompt columns, N columns of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sprunec.data.batches import IGNORED, Batch


@dataclass(frozen=True)
class Example:
    """A text, (n,) each: what may be seen from anywhere, the segment types, the token asked for or -100."""

    task: int
    tokens: NDArray[np.int64]
    context: NDArray[np.bool_]
    segment: NDArray[np.int64]
    targets: NDArray[np.int64]


def draws(key: int, place: int, purpose: int = 0, part: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but these four."""
    return np.random.Generator(np.random.Philox(key=[key, place], counter=[0, 0, part, purpose]))


@dataclass(frozen=True)
class Packer:
    """Rows of P + n columns, several documents a row.

    Attributes:
        prompt_base: what is added to the prompt ids of the second and later documents of a row, which the model looks
            up among the words: 0 gives the words of these numbers; vocab_size gives the prompt's own embeddings.
    """

    prompt_length: int
    columns: int
    prompt_base: int

    def pack(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """One row for each list of documents, which fit."""
        shape = len(rows), self.columns
        ids, segment, span = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        context, targets = np.zeros(shape, dtype=bool), np.full(shape, IGNORED, dtype=np.int64)
        lengths = np.zeros(len(rows), dtype=np.int64)
        prompt = np.arange(self.prompt_length)
        for row, documents in enumerate(rows):
            at = 0
            for ordinal, example in enumerate(documents):
                text = at + self.prompt_length
                end = text + example.tokens.size
                ids[row, at:text] = prompt + self.prompt_length * example.task + (self.prompt_base if ordinal else 0)
                ids[row, text:end], context[row, at:text] = example.tokens, True
                context[row, text:end], segment[row, text:end] = example.context, example.segment
                targets[row, text:end], span[row, at:end] = example.targets, ordinal
                at = end
            span[row, at:] = len(documents)
            lengths[row] = at
        columns = {"input": ids, "length": lengths, "context": context, "segment": segment, "span": span}
        return Batch({name: torch.from_numpy(value) for name, value in columns.items()}, torch.from_numpy(targets))
