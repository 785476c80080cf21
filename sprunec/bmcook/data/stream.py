"""Training and held-out batches of a CPM-Live data set.

One order for all processes: blocks in an order drawn for each epoch, the records of each block in one too. Rows are
packed from that order as CPM-Live packs them, and which document goes where depends on lengths alone. After a batch
exactly one document is left, the one that no row could take; so one number a step, where the batch begins in the order,
is all the state there is, and any step's batch can be made alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.records import Records, make_example
from sprunec.data.batches import Batch, Packer, Sample, draws
from sprunec.data.saved import load_array
from sprunec.data.tokenizer import Tokenizer, read_tokenizer
from sprunec.durable import read_file
from sprunec.errors import InputError
from sprunec.families.base import Document
from sprunec.families.base_config import ModelConfig
from sprunec.families.cpm_ant.config import TEXT_TASK

ABOUT = "set.json"
STORED, PROMPT_TABLE = "stored", "prompt-table"
BLOCKS, WITHIN, TRAINING, HELD_OUT = range(4)  # what random numbers are drawn for
HELD_OUT_KEY = 0  # held-out examples are the same whatever the plan's seed


class Order:
    """The order in which records come, epoch after epoch.

    Args:
        blocks: (R,) the block of each record, records of one block side by side.
        shuffled: else blocks and records come as they are stored.
        share: (r, w): of the blocks only those whose number mod w is r.
    """

    def __init__(self, blocks: NDArray[np.int64], seed: int, shuffled: bool, share: tuple[int, int] = (0, 1)) -> None:
        bounds = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
        spans = np.stack([bounds[:-1], bounds[1:]], 1)
        self._spans: NDArray[np.int64] = spans[blocks[spans[:, 0]] % share[1] == share[0]]
        self._seed, self._shuffled = seed, shuffled
        self.size = int((self._spans[:, 1] - self._spans[:, 0]).sum())
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch may stand in two

    def _epoch(self, number: int) -> NDArray[np.int64]:
        """Give the (size,) records of an epoch."""
        if not self._shuffled:
            return np.concatenate([np.arange(start, end) for start, end in self._spans])
        parts = []
        for block in draws(self._seed, number, BLOCKS).permutation(len(self._spans)).tolist():
            start, end = self._spans[block].tolist()
            parts.append(start + draws(self._seed, number, WITHIN, block).permutation(end - start))
        return np.concatenate(parts)

    def after(self, place: int) -> Iterator[int]:
        """Give the records of the endless order from a place on."""
        while True:
            epoch, start = divmod(place, self.size)
            yield from map(int, self.epoch(epoch)[start:])
            place += self.size - start


def first_fit(lengths: Iterable[int], rows: int, width: int, shortest: int) -> tuple[list[list[int]], int]:
    """Put documents, in order, each into the first row where it leaves a position free, until one needs row `rows` + 1.

    Args:
        lengths: positions of each document, its prompt's among them; at most `width`.
        shortest: none of them is shorter; a row that cannot take so much is not looked at again.

    Returns:
        the documents of each row, and how many were placed.
    """
    placed: list[list[int]] = []
    used: list[int] = []
    open_rows: list[int] = []
    for number, length in enumerate(lengths):
        row = next((row for row in open_rows if used[row] + length < width), len(used))
        if row == rows:
            break
        if row == len(used):
            placed.append([])
            used.append(0)
            open_rows.append(row)
        placed[row].append(number)
        used[row] += length
        if used[row] + shortest >= width:
            open_rows.remove(row)
    return placed, sum(map(len, placed))


class Stream:
    """Sequences packed from an endless order: `rows` of them a step."""

    def __init__(self, order: Order, lengths: NDArray[np.int64], rows: int, width: int) -> None:
        self._order, self._lengths, self._rows, self._width = order, lengths, rows, width
        self._shortest = int(lengths.min())
        self._starts = {0: 0}  # by step, those asked for so far and the next one: where it begins in the order

    def rows(self, step: int) -> list[list[tuple[int, int]]]:
        """Give each row's documents: their places in the order, and the records there."""
        for known in range(min(step, len(self._starts) - 1), step + 1):
            start = self._starts[known]
            lengths = (int(self._lengths[record]) for record in self._order.after(start))
            placed, count = first_fit(lengths, self._rows, self._width, self._shortest)
            self._starts[known + 1] = start + count
        records = list(islice(self._order.after(start), count))
        return [[(start + number, records[number]) for number in row] for row in placed]


@dataclass
class LiveData:
    """Batches of a set; `world` processes share a stored order by blocks, each with its part of a global batch."""

    train: Records
    held_out: Records
    tokenizer: Tokenizer | None
    packer: Packer
    batch_size: int
    seed: int
    order: str = "shuffled"
    world: int = 1

    def __post_init__(self) -> None:
        stored = self.order == STORED
        world, size = self.world if stored else 1, self.batch_size
        blocks, lengths = self.train.index["block"].astype(np.int64), self._lengths(self.train)
        orders = [Order(blocks, self.seed, not stored, (rank, world)) for rank in range(world)]
        if size % world or any(order.size == 0 for order in orders):
            message = f"{world} processes cannot share {size} sequences and the set's blocks alike"
            raise InputError.in_option("/data/order", message, 'choose order "shuffled", or fewer processes')
        self._streams = [Stream(order, lengths, size // world, self.packer.width) for order in orders]

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`."""
        return self.packer.pack([self._examples(*each) for each in self._rows(step)])

    def distinct_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Pack the rows that come next and have no record again, until a step has none of these."""
        rows = (self._examples(*each) for each in self._once(range(step, step + count)))
        return self.packer.batches(rows, self.batch_size)

    def _once(self, steps: range) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        seen = set[int]()
        for step in steps:
            before = len(seen)
            for rank, row in self._rows(step):
                records = {record for _, record in row}
                if seen.isdisjoint(records):
                    seen |= records
                    yield rank, row
            if len(seen) == before:
                return

    def _rows(self, step: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Give the rows of a step, each with its process."""
        return [(rank, row) for rank, stream in enumerate(self._streams) for row in stream.rows(step)]

    def _examples(self, rank: int, row: Iterable[tuple[int, int]]) -> list[Document]:
        return [make_example(self.train[record], draws(self.seed, place, TRAINING, rank)) for place, record in row]

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack the held-out records in stored order, until so many targets; what is hidden is always the same."""
        lengths, start, left = self._lengths(self.held_out), 0, sys.maxsize if tokens is None else tokens
        shortest = int(lengths.min())
        while start < len(self.held_out) and left > 0:
            placed, count = first_fit(map(int, lengths[start:]), self.batch_size, self.packer.width, shortest)
            examples: list[Document] = []
            while len(examples) < count and left > 0:
                number = start + len(examples)
                examples.append(make_example(self.held_out[number], draws(HELD_OUT_KEY, number, HELD_OUT)))
                left -= int((examples[-1].targets >= 0).sum())
            rows = [[examples[place] for place in row if place < len(examples)] for row in placed]
            yield self.packer.pack([row for row in rows if row])
            start += count

    def sample(self, length: int, share: float = 0.0) -> Sample | None:
        """Give the beginning of a held-out text that is written from left to right."""
        written = np.flatnonzero(self.held_out.index["task"] == TEXT_TASK)
        if self.tokenizer is None or not written.size:
            return None
        tokens = self.held_out[int(written[int(share * written.size)])].tokens[:length]
        document = Document(tokens, np.ones(tokens.size, dtype=bool), tokens, task=TEXT_TASK)
        return Sample(document, stop=self.tokenizer.end)

    def decode(self, ids: Iterable[int]) -> str:
        assert self.tokenizer is not None
        marks = (self.tokenizer.begin, self.tokenizer.end)
        return self.tokenizer.decode(i for i in ids if i not in marks)

    def _lengths(self, records: Records) -> NDArray[np.int64]:
        """Positions that each record takes."""
        tokens: NDArray[np.int64] = records.index["tokens"].astype(np.int64)
        return tokens + self.packer.config.overhead


def load_live_data(
    directory: Path, files: Mapping[str, Sequence[Path]], config: ModelConfig, max_length: int, **options: int
) -> LiveData:
    """Open what `read_sets` wrote.

    Args:
        files: by role, meta.bin and the set's files.
        options: batch_size, seed, and as `world` how many processes train.
    """
    about = json.loads(read_file(directory / ABOUT))
    train, held_out = (
        Records(load_array(directory / f"{part}.npy"), files[role][1:]) for part, role in about["roles"].items()
    )
    tokenizer = read_tokenizer(directory) if (directory / "vocabulary.json").exists() else None
    packer = Packer(config, max_length, config.vocab_size if about["packed_prompts"] == PROMPT_TABLE else 0)
    return LiveData(train, held_out, tokenizer, packer, order=about["order"], **options)
