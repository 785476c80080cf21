"""Training and held-out batches of a CPM-Live data set.

One order for all processes: blocks in an order drawn for each epoch, the records of each block in one too. Rows are
packed from that order as CPM-Live packs them, and which document goes where depends on lengths alone. After a batch
exactly one document is left, the one that no row could take; so one number a step, where the batch begins in the order,
is all the state there is, and any step's batch can be made alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.packing import first_fit, make_example
from sprunec.bmcook.data.records import Index, Records
from sprunec.data.batches import Batch, Packer, Sample, draws
from sprunec.data.saved import load_array, save_array
from sprunec.data.tokenizer import Tokenizer, read_tokenizer
from sprunec.durable import read_file, write_new
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
        self._epochs: dict[int, NDArray[np.int64]] = {}
        self.size = int((self._spans[:, 1] - self._spans[:, 0]).sum())

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Give the (size,) records of an epoch; the last two epochs asked for are kept."""
        if number not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = self._make(number)
        return self._epochs[number]

    def after(self, place: int) -> Iterator[int]:
        """Give the records of the endless order from a place on."""
        while True:
            epoch, start = divmod(place, self.size)
            for record in self.epoch(epoch)[start:]:
                yield int(record)
            place += self.size - start

    def _make(self, number: int) -> NDArray[np.int64]:
        if not self._shuffled:
            return np.concatenate([np.arange(start, end) for start, end in self._spans])
        parts = []
        for block in draws(self._seed, number, BLOCKS).permutation(len(self._spans)).tolist():
            start, end = self._spans[block].tolist()
            parts.append(start + draws(self._seed, number, WITHIN, block).permutation(end - start))
        return np.concatenate(parts)


class Stream:
    """Sequences packed from an endless order: `rows` of them a step."""

    def __init__(self, order: Order, lengths: NDArray[np.int64], rows: int, width: int) -> None:
        self._order, self._lengths, self._rows, self._width = order, lengths, rows, width
        self._shortest = int(lengths.min())
        self._starts = [0]  # of the steps asked for so far, and of the next one: places in the order

    def rows(self, step: int) -> list[list[tuple[int, int]]]:
        """Give each row's documents: their places in the order, and the records there."""
        while True:
            known = min(step, len(self._starts) - 1)
            start = self._starts[known]
            lengths = (int(self._lengths[record]) for record in self._order.after(start))
            placed, count = first_fit(lengths, self._rows, self._width, self._shortest)
            if known == len(self._starts) - 1:
                self._starts.append(start + count)
            if known == step:
                records = list(islice(self._order.after(start), count))
                return [[(start + number, records[number]) for number in row] for row in placed]


class LiveData:
    """Batches of a set; `world` processes share a stored order by blocks, and a global batch has their
    sequences in turn."""

    def __init__(
        self,
        train: Records,
        held_out: Records,
        tokenizer: Tokenizer | None,
        packer: Packer,
        *,
        batch_size: int,
        seed: int,
        order: str = "shuffled",
        world: int = 1,
    ) -> None:
        self.train, self.held_out, self.tokenizer, self.packer = train, held_out, tokenizer, packer
        self.batch_size, self.seed = batch_size, seed
        world = world if order == STORED else 1
        blocks, lengths = train.index["block"].astype(np.int64), self._lengths(train)
        orders = [Order(blocks, seed, order != STORED, (rank, world)) for rank in range(world)]
        if batch_size % world or any(order.size == 0 for order in orders):
            message = f"{world} processes cannot share {batch_size} sequences and the set's blocks alike"
            raise InputError.in_option("/data/order", message, 'choose order "shuffled", or fewer processes')
        self._streams = [Stream(order, lengths, batch_size // world, packer.width) for order in orders]

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`."""
        rows = [
            [make_example(self.train[record], draws(self.seed, place, TRAINING, rank)) for place, record in row]
            for rank, stream in enumerate(self._streams)
            for row in stream.rows(step)
        ]
        return self.packer.pack(rows)

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack the held-out records in stored order; what is hidden in each is always the same.

        Args:
            tokens: stop after so many targets, to the record.
        """
        lengths, start, asked = self._lengths(self.held_out), 0, 0
        shortest = int(lengths.min())
        while start < len(self.held_out) and (tokens is None or asked < tokens):
            placed, count = first_fit(map(int, lengths[start:]), self.batch_size, self.packer.width, shortest)
            examples = []
            for number in range(start, start + count):
                if tokens is not None and asked >= tokens:
                    break
                examples.append(make_example(self.held_out[number], draws(HELD_OUT_KEY, number, HELD_OUT)))
                asked += int((examples[-1].targets >= 0).sum())
            rows = [[examples[place] for place in row if place < len(examples)] for row in placed]
            yield self.packer.pack([row for row in rows if row])
            start += count

    def sample(self, length: int) -> Sample | None:
        """Give the beginning of the first held-out text that is written from left to right."""
        written = np.flatnonzero(self.held_out.index["task"] == TEXT_TASK)
        if self.tokenizer is None or not written.size:
            return None
        tokens = self.held_out[int(written[0])].tokens[:length]
        document = Document(tokens, np.ones(tokens.size, dtype=bool), tokens, task=TEXT_TASK)
        return Sample(document, stop=self.tokenizer.end)

    def decode(self, ids: Iterable[int]) -> str:
        assert self.tokenizer is not None
        marks = (self.tokenizer.begin, self.tokenizer.end)
        return self.tokenizer.decode(i for i in ids if i not in marks)

    def _lengths(self, records: Records) -> NDArray[np.int64]:
        """Positions that each record takes."""
        tokens: NDArray[np.int64] = records.index["tokens"].astype(np.int64)
        return tokens + self.packer.overhead


def save_live_data(directory: Path, parts: Mapping[str, tuple[Index, str]], about: Mapping[str, Any]) -> None:
    """Keep the indexes of the parts `train` and `held_out`, each with the role of the files it is about."""
    for part, (index, _) in parts.items():
        save_array(directory / f"{part}.npy", index)
    write_new(directory / ABOUT, json.dumps({"roles": {part: role for part, (_, role) in parts.items()}, **about}))


def load_live_data(
    directory: Path,
    files: Mapping[str, Sequence[Path]],
    config: ModelConfig,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    world: int,
) -> LiveData:
    """Open what `save_live_data` wrote.

    Args:
        files: by role, meta.bin and the set's files.
        world: how many processes train.
    """
    about = json.loads(read_file(directory / ABOUT))
    train, held_out = (
        Records(load_array(directory / f"{part}.npy"), files[about["roles"][part]][1:])
        for part in ("train", "held_out")
    )
    tokenizer = read_tokenizer(directory) if (directory / "vocabulary.json").exists() else None
    packer = Packer(config, max_length, config.vocab_size if about["packed_prompts"] == PROMPT_TABLE else 0)
    shared = {"batch_size": batch_size, "seed": seed, "world": world}
    return LiveData(train, held_out, tokenizer, packer, order=about["order"], **shared)
