"""Pairs of an input and a target, to fine-tune on: the input is seen whole, the target is asked for.

A pair is begin, input (all of it visible), target, end (asked for), or a chat as `chats` has it; a row is one pair, or
as many as fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.data.batches import Packer, Sample, answered
from sprunec.data.packing import PARTS, EpochData, load_rows
from sprunec.data.tokenizer import Tokenizer, read_tokenizer, save_tokenizer
from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.families.base import Document


@dataclass(frozen=True)
class Pairs:
    """Ids of pairs, one behind the other: pair i is tokens[starts[i]:starts[i + 1]], its first `seen[i]` the input.

    Attributes:
        asked: (tokens,) which ones are asked for, of chats; None: all behind the input.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    seen: NDArray[np.int64]
    asked: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.seen)

    def document(self, number: int) -> Document:
        some = slice(self.starts[number], self.starts[number + 1])
        tokens = self.tokens[some]
        context = np.arange(tokens.size) < self.seen[number]
        if self.asked is None:
            return answered(tokens, context)
        return answered(tokens, context, asked=self.asked[some])

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    @property
    def target_counts(self) -> NDArray[np.int64]:
        if self.asked is None:
            return self.lengths - self.seen
        return np.add.reduceat(self.asked.astype(np.int64), self.starts[:-1])


class PairData(EpochData):
    """Batches of pairs."""

    held_out: Pairs

    def sample(self, length: int, share: float = 0.0) -> Sample:
        """Give a held-out input, the end of it if it is longer."""
        number = int(share * len(self.held_out))
        start, seen = int(self.held_out.starts[number]), int(self.held_out.seen[number])
        ids = self.held_out.tokens[start : start + seen][-length:]
        return Sample(Document(ids, np.ones(ids.size, dtype=bool), ids), stop=self.tokenizer.end)

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(i for i in ids if i not in (self.tokenizer.begin, self.tokenizer.end))


def save_pairs(directory: Path, train: Pairs, held_out: Pairs, tokenizer: Tokenizer) -> None:
    for name, part in zip(PARTS, (train, held_out), strict=True):
        arrays: dict[str, Any] = {"tokens": part.tokens, "starts": part.starts, "seen": part.seen}
        arrays |= {} if part.asked is None else {"asked": part.asked}
        path, needed = directory / f"{name}.npz", sum(each.nbytes for each in arrays.values())
        with naming(path, needed):
            np.savez(path, **arrays)
    save_tokenizer(directory, tokenizer)


def has_pairs(directory: Path) -> bool:
    return (directory / f"{PARTS[0]}.npz").exists()


def load_pair_data(directory: Path, packer: Packer, *, batch_size: int, seed: int) -> PairData:
    """Open what `save_pairs` wrote."""
    parts = []
    for name in PARTS:
        with naming(path := directory / f"{name}.npz"), np.load(path) as arrays:
            parts.append(Pairs(**arrays))
    return PairData(parts[0], parts[1], read_tokenizer(directory), packer, batch_size, seed, load_rows(directory))


def check_parts(train: Pairs, held_out: Pairs, files: Sequence[Path]) -> None:
    """Raises InputError: a part has no pair; `files` are those that the two came from."""
    for name, part, file in zip(("training", "held-out"), (train, held_out), files, strict=True):
        if not len(part):
            raise InputError.at(file, f"the {name} part has no pair", "give more pairs, or a larger max_length")
