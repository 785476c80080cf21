"""Pairs of an input and a target, to fine-tune on: the input is seen whole, the target is asked for.

A row is one pair: begin, input (all of it visible), target, end (asked for).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sprunec.data.batches import Batch, Packer, Sample, answered, draws
from sprunec.data.text import json_records
from sprunec.data.tokenizer import Tokenizer, read_tokenizer, save_tokenizer
from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.families.base import Document

PARTS = ("train", "held_out")


@dataclass(frozen=True)
class Pairs:
    """Ids of pairs, one behind the other: pair i is tokens[starts[i]:starts[i + 1]], its first `seen[i]` the input."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    seen: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.seen)

    def document(self, number: int) -> Document:
        tokens = self.tokens[self.starts[number] : self.starts[number + 1]]
        return answered(tokens, np.arange(tokens.size) < self.seen[number])


def read_pairs(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Read pairs from JSON-lines files. Raises InputError: a line has no `input` and `target` strings."""
    return [(pair["input"], pair["target"]) for path in paths for pair in json_records(path, ("input", "target"))]


def encode_pairs(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, room: int) -> tuple[Pairs, int, int]:
    """Turn pairs into ids, each at most `room` of them: inputs lose what is too much at their beginning.

    Returns:
        the pairs, how many were left out because their target alone is too long, and how many inputs were cut.
    """
    rows, seen = [np.zeros(0, dtype=np.int32)], []
    dropped = cut = 0
    for before, after in pairs:
        shown, asked = tokenizer.encode(before), tokenizer.encode(after)
        space = room - 2 - asked.size
        if space < 0:
            dropped += 1
            continue
        cut += shown.size > space
        shown = shown[max(shown.size - space, 0) :]
        rows.append(np.concatenate([[tokenizer.begin], shown, asked, [tokenizer.end]]).astype(np.int32))
        seen.append(1 + shown.size)
    starts = np.cumsum([row.size for row in rows])
    return Pairs(np.concatenate(rows), starts, np.array(seen, dtype=np.int64)), dropped, cut


@dataclass(frozen=True)
class PairData:
    """Batches of pairs, one a row; each epoch goes through all of them in an order of its own."""

    train: Pairs
    held_out: Pairs
    tokenizer: Tokenizer
    packer: Packer
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`."""
        first, size = step * self.batch_size, len(self.train)
        places = [divmod(place, size) for place in range(first, first + self.batch_size)]
        orders = {epoch: draws(self.seed, epoch).permutation(size) for epoch in {epoch for epoch, _ in places}}
        return self.packer.pack([[self.train.document(orders[epoch][place])] for epoch, place in places])

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack the held-out pairs as they are stored, until there are so many targets."""
        targets = np.diff(self.held_out.starts) - self.held_out.seen
        wanted = len(targets) if tokens is None else int(np.searchsorted(np.cumsum(targets), tokens)) + 1
        documents = map(self.held_out.document, range(min(wanted, len(targets))))
        return self.packer.batches(documents, self.batch_size)

    def sample(self, length: int) -> Sample:
        """Give the first held-out input, the end of it if it is longer."""
        ids = self.held_out.tokens[: int(self.held_out.seen[0])][-length:]
        return Sample(Document(ids, np.ones(ids.size, dtype=bool), ids), stop=self.tokenizer.end)

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(i for i in ids if i not in (self.tokenizer.begin, self.tokenizer.end))


def save_pairs(directory: Path, train: Pairs, held_out: Pairs, tokenizer: Tokenizer) -> None:
    for name, part in zip(PARTS, (train, held_out), strict=True):
        path, needed = directory / f"{name}.npz", part.tokens.nbytes + part.starts.nbytes + part.seen.nbytes
        with naming(path, needed):
            np.savez(path, tokens=part.tokens, starts=part.starts, seen=part.seen)
    save_tokenizer(directory, tokenizer)


def has_pairs(directory: Path) -> bool:
    return (directory / f"{PARTS[0]}.npz").exists()


def load_pair_data(directory: Path, packer: Packer, *, batch_size: int, seed: int) -> PairData:
    """Open what `save_pairs` wrote."""
    parts = []
    for name in PARTS:
        with naming(path := directory / f"{name}.npz"), np.load(path) as arrays:
            parts.append(Pairs(arrays["tokens"], arrays["starts"], arrays["seen"]))
    return PairData(parts[0], parts[1], read_tokenizer(directory), packer, batch_size, seed)


def check_parts(train: Pairs, held_out: Pairs, files: Sequence[Path]) -> None:
    """Raises InputError: a part has no pair; `files` are those that the two came from."""
    for name, part, file in zip(("training", "held-out"), (train, held_out), files, strict=True):
        if not len(part):
            raise InputError.at(file, f"the {name} part has no pair", "give more pairs, or a larger max_length")
