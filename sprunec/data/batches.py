"""Batches as a function of the seed and of how many training steps the model has had; nothing else decides them.

Letters in shapes: B rows, N positions, n tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprunec.data.saved import SavedIds, save_array
from sprunec.data.tokenizer import Tokenizer, read_tokenizer, save_tokenizer
from sprunec.errors import InputError
from sprunec.families.base import Document, Inputs, family_of
from sprunec.families.base_config import ModelConfig

IGNORED = -100
DISTINCT = 1  # what random numbers are drawn for, besides training


def draws(key: int, place: int, purpose: int = 0, part: int = 0) -> np.random.Generator:
    """Make random numbers that depend on nothing but these four."""
    return np.random.Generator(np.random.Philox(key=[key, place], counter=[0, 0, part, purpose]))


@dataclass(frozen=True)
class Batch:
    """What a model is given and what it should say: `targets` (B, N), IGNORED where nothing is asked."""

    inputs: dict[str, Tensor]
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.targets.to(device, non_blocking=True))

    def split(self, parts: int) -> list[Batch]:
        """Share the rows equally."""
        shares = {name: tensor.chunk(parts) for name, tensor in self.inputs.items()}
        targets = self.targets.chunk(parts)
        return [Batch({name: shares[name][i] for name in shares}, targets[i]) for i in range(len(targets))]

    def part(self, rows: slice, width: int) -> Batch:
        """Take some of the rows, cut off behind so many positions."""
        inputs = {name: tensor[rows, ..., :width] for name, tensor in self.inputs.items() if tensor.dim() == 2}
        length = {"length": self.inputs["length"][rows].clamp(max=width)}
        return Batch(inputs | length, self.targets[rows, :width])

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORED).sum())


def in_use(inputs: Inputs) -> Tensor:
    """Mark the positions that are not padding: (B, N)."""
    width = next(tensor.size(1) for tensor in inputs.values() if tensor.dim() == 2)
    return inputs["length"][:, None] > torch.arange(width, device=inputs["length"].device)


def places_of(batch: Batch, on: str) -> Tensor:
    """Mark the positions (B, N) that a loss is taken on: "targets", where a token is asked for; "all": those in use."""
    return in_use(batch.inputs) if on == "all" else batch.targets != IGNORED


def divided(batches: Iterable[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """Divide batches into their first so many rows and the others."""
    first, others = list[Batch](), list[Batch]()
    for batch in batches:
        rows, width = batch.targets.shape
        inside = min(rows, count)
        first += [batch.part(slice(0, inside), width)] * (inside > 0)
        others += [batch.part(slice(inside, rows), width)] * (inside < rows)
        count -= inside
    return first, others


def grouped(batches: Iterable[Batch], numbers: Callable[[Batch], int], most: int) -> Iterator[list[Batch]]:
    """Group batches by what is held of them at a time: at most so many numbers, and one batch at least."""
    group, count = list[Batch](), 0
    for batch in batches:
        if group and count + numbers(batch) > most:
            yield group
            group, count = [], 0
        group.append(batch)
        count += numbers(batch)
    if group:
        yield group


def answered(
    tokens: NDArray[np.integer[Any]], context: NDArray[np.bool_], *more: Any, asked: NDArray[np.bool_] | None = None
) -> Document:
    """Make a document that begins with context, and of which all else is asked for, or `asked`; `more` as it has it."""
    targets = np.full(tokens.size, IGNORED, dtype=np.int64)
    targets[:-1] = np.where(~context[1:] if asked is None else asked[1:], tokens[1:], IGNORED)
    return Document(tokens, context, targets, *more)


@dataclass(frozen=True)
class Packer:
    """Rows of `width` positions for models of a config; what `base` is, data sets made for its family know."""

    config: ModelConfig
    width: int
    base: int = 0

    @property
    def room(self) -> int:
        """Count the tokens that fit into a row of but one document."""
        return self.width - self.config.overhead

    def pack(self, rows: Sequence[Sequence[Document]]) -> Batch:
        """Make one row of each list of documents, which fit."""
        arranged, text = family_of(self.config).arrange(self.config, rows, self.width, self.base)
        targets = np.full(text.shape, IGNORED, dtype=np.int64)
        targets[text] = np.concatenate([document.targets for row in rows for document in row])
        inputs = {name: torch.from_numpy(value) for name, value in arranged.items()}
        return Batch(inputs, torch.from_numpy(targets))

    def batches(self, rows: Iterable[Sequence[Document]], size: int) -> Iterator[Batch]:
        """Pack so many rows at a time."""
        left = iter(rows)
        while some := list(islice(left, size)):
            yield self.pack(some)


class Sample(NamedTuple):
    """What a model may go on writing from, and the token that it stops behind."""

    document: Document
    stop: int | None = None


class Data(Protocol):
    """What every source of data offers to the passes."""

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`, a function of the seed and the step."""

    def distinct_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Make so many batches, of which no two rows have text in common; fewer where there is no more of it."""

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack the held-out part, always the same, each target once; stop after about so many targets."""

    def sample(self, length: int, share: float = 0.0) -> Sample | None:
        """Give `length` ids of held-out text, from so far into it; None where nothing can turn ids into text."""

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class TextData:
    """Ids of a text, cut into windows: plain causal language modelling."""

    train: NDArray[np.int32] | SavedIds
    held_out: NDArray[np.int32] | SavedIds
    tokenizer: Tokenizer
    packer: Packer
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`: windows drawn anew for each step."""
        starts = draws(self.seed, step).integers(0, self.train.size - self.packer.room, size=self.batch_size)
        return self.packer.pack([[self._window(self.train, start)] for start in starts])

    def distinct_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Pack windows of those that the text can be cut into, drawn for this step."""
        windows = draws(self.seed, step, DISTINCT).permutation(self.train.size // self.packer.room)
        starts = windows[: count * self.batch_size] * self.packer.room
        return self.packer.batches(([self._window(self.train, start)] for start in starts), self.batch_size)

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack consecutive windows, each target once, until there are so many; a short rest is padded."""
        targets = self.held_out.size - 1
        starts = range(0, min(targets, tokens or targets), self.packer.room)
        return self.packer.batches(([self._window(self.held_out, start)] for start in starts), self.batch_size)

    def _window(self, ids: NDArray[np.int32] | SavedIds, start: int) -> Document:
        """Cut out tokens, as many as there is room for, with those that follow them, as far as there are any."""
        piece = ids[start : start + self.packer.room + 1]
        tokens, following = piece[: self.packer.room], piece[1:]
        targets = np.pad(following, (0, tokens.size - following.size), constant_values=IGNORED)
        return Document(tokens, np.zeros(tokens.size, dtype=bool), targets)

    def sample(self, length: int, share: float = 0.0) -> Sample:
        start = int(share * self.held_out.size)
        ids = self.held_out[start : start + length]
        return Sample(Document(ids, np.zeros(ids.size, dtype=bool), ids))

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)


def save_ids(directory: Path, train: NDArray[np.int32], held_out: NDArray[np.int32], tokenizer: Tokenizer) -> None:
    save_array(directory / "train.npy", train)
    save_array(directory / "held_out.npy", held_out)
    save_tokenizer(directory, tokenizer)


def load_text_data(directory: Path, packer: Packer, *, batch_size: int, seed: int) -> TextData:
    """Open what `save_ids` wrote; its windows are read when they are asked for.

    Raises:
        InputError: a part is shorter than one window.
    """
    train, held_out = (SavedIds(directory / f"{part}.npy") for part in ("train", "held_out"))
    for part, ids, least in (("training", train, packer.room + 1), ("held-out", held_out, 2)):
        if ids.size < least:
            message = f"the {part} part has {ids.size} tokens, one window needs {least}"
            raise InputError.in_option("/data/max_length", message, "give more text, or a smaller max_length")
    return TextData(train, held_out, read_tokenizer(directory), packer, batch_size, seed)
