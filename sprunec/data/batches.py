"""Batches as a function of the seed and of how many training steps the model has had; nothing else decides them.

Letters in shapes: B rows, P prompt columns, T text columns, N = P + T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprunec.data.saved import SavedIds, save_array
from sprunec.data.tokenizer import Tokenizer, read_tokenizer, save_tokenizer
from sprunec.errors import InputError

PROMPT_TASK, TEXT_SEGMENT = 2, 2
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """What a model is given and what it should say: `targets` (B, N), -100 where nothing is asked."""

    inputs: dict[str, Tensor]
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.targets.to(device, non_blocking=True))

    def split(self, parts: int) -> list[Batch]:
        """Equal shares of the rows."""
        shares = {name: tensor.chunk(parts) for name, tensor in self.inputs.items()}
        targets = self.targets.chunk(parts)
        return [Batch({name: shares[name][i] for name in shares}, targets[i]) for i in range(len(targets))]

    def part(self, rows: slice, columns: int) -> Batch:
        """Some of the rows, cut off behind so many columns."""
        inputs = {name: tensor[rows, ..., :columns] for name, tensor in self.inputs.items() if tensor.dim() == 2}
        length = {"length": self.inputs["length"][rows].clamp(max=columns)}
        return Batch(inputs | length, self.targets[rows, :columns])

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORED).sum())


@dataclass(frozen=True)
class Sample:
    """What a model may go on writing from: ids (n,), and how `CPMAnt.generate` should take them."""

    ids: NDArray[Any]
    task: int = PROMPT_TASK
    context: bool = False
    stop: int | None = None


class Data(Protocol):
    """What every source of data offers to the passes."""

    def batch(self, step: int) -> Batch:
        """The global batch of training step `step`, a function of the seed and the step."""

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """The held-out part, always the same, each target once; stops after about so many targets."""

    def sample(self, length: int) -> Sample | None:
        """The first `length` ids of held-out text; None where nothing can turn ids into text."""

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class TextData:
    """Ids of a text, cut into windows: plain causal language modelling behind CPM-Ant's prompt of task 2."""

    train: NDArray[np.int32] | SavedIds
    held_out: NDArray[np.int32] | SavedIds
    tokenizer: Tokenizer
    prompt_length: int
    max_length: int
    batch_size: int
    seed: int

    @property
    def window(self) -> int:
        return self.max_length - self.prompt_length

    def batch(self, step: int) -> Batch:
        """The global batch of training step `step`: windows drawn anew for each step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = draw.integers(0, self.train.size - self.window, size=self.batch_size)
        return self._pack(np.stack([self.train[start : start + self.window + 1] for start in starts]))

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Consecutive windows over the held-out part, each target once; a short rest is padded.

        Args:
            tokens: stop after so many targets, to the window.
        """
        targets = self.held_out.size - 1
        starts = np.arange(0, min(targets, tokens or targets), self.window)
        for first in range(0, len(starts), self.batch_size):
            rows = [self.held_out[s : s + self.window + 1] for s in starts[first : first + self.batch_size]]
            padded = np.full((len(rows), self.window + 1), IGNORED, dtype=np.int32)
            for place, row in enumerate(rows):
                padded[place, : row.size] = row
            yield self._pack(padded)

    def sample(self, length: int) -> Sample:
        return Sample(self.held_out[:length])

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def _pack(self, ids: NDArray[np.int32]) -> Batch:
        """ids (B, T + 1), IGNORED where a row has ended."""
        rows, prompt = torch.from_numpy(ids.astype(np.int64)), self.prompt_length
        words, following = rows[:, :-1], rows[:, 1:]
        batch, columns = words.size(0), prompt + words.size(1)
        text = torch.arange(columns) >= prompt
        prompt_ids = (torch.arange(prompt) + PROMPT_TASK * prompt).expand(batch, -1)
        inputs = {
            "input": torch.cat([prompt_ids, words.clamp(min=0)], 1),
            "length": prompt + (words != IGNORED).sum(1),
            "context": (~text).expand(batch, -1),
            "segment": (text * TEXT_SEGMENT).expand(batch, -1),
            "span": torch.zeros(batch, columns, dtype=torch.long),
        }
        return Batch(inputs, torch.nn.functional.pad(following, (prompt, 0), value=IGNORED))


def save_ids(directory: Path, train: NDArray[np.int32], held_out: NDArray[np.int32], tokenizer: Tokenizer) -> None:
    save_array(directory / "train.npy", train)
    save_array(directory / "held_out.npy", held_out)
    save_tokenizer(directory, tokenizer)


def load_text_data(directory: Path, *, prompt_length: int, max_length: int, batch_size: int, seed: int) -> TextData:
    """Open what `save_ids` wrote; its windows are read when they are asked for.

    Raises:
        InputError: a part is shorter than one window.
    """
    train, held_out = (SavedIds(directory / f"{part}.npy") for part in ("train", "held_out"))
    tokenizer = read_tokenizer(directory)
    window = max_length - prompt_length
    for part, ids, least in (("training", train, window + 1), ("held-out", held_out, 2)):
        if ids.size < least:
            message = f"the {part} part has {ids.size} tokens, one window needs {least}"
            raise InputError.at("data.max_length", message, "give more text, or a smaller max_length")
    return TextData(train, held_out, tokenizer, prompt_length, max_length, batch_size, seed)
