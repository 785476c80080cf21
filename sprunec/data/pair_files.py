"""Files of pairs, or of chats, into ids while they are read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.data.chats import Chat, read_chat_template, read_chats
from sprunec.data.encoding import packed
from sprunec.data.fast_tokenizer import FastTokenizer
from sprunec.data.packing import PARTS, Rows, padding
from sprunec.data.pairs import Pairs, check_parts, save_pairs
from sprunec.data.text import json_records
from sprunec.data.tokenizer import Tokenizer

Pair = tuple[str, str]


class PairWriter:
    """Takes pairs as they come, each at most `room` ids; none of their texts is kept.

    Attributes:
        dropped, shortened: how many were left out because they are too long, and how many inputs were cut.
    """

    def __init__(self, room: int) -> None:
        self._room, self.dropped, self.shortened = room, 0, 0
        self._tokens, self._starts, self._seen, self._asked = array("i"), array("q", [0]), array("q"), bytearray()

    def add(self, ids: NDArray[np.int32], seen: int, asked: NDArray[np.bool_] | None = None) -> None:
        if ids.size > self._room:
            self.dropped += 1
            return
        self._tokens.frombytes(ids.astype(np.int32).tobytes())
        self._starts.append(len(self._tokens))
        self._seen.append(seen)
        self._asked += b"" if asked is None else asked.tobytes()

    def add_chat(self, ids: NDArray[np.int32], asked: NDArray[np.bool_]) -> None:
        """Add a chat, all seen up to its first reply; one that asks for nothing is left out."""
        if asked[1:].any():
            self.add(ids, int(asked.argmax()), asked)
        else:
            self.dropped += 1

    def add_pair(self, pair: Pair, tokenizer: Tokenizer) -> None:
        """Add begin, input, target, end; of an input that is too long its end, and no target that is."""
        shown, asked = map(tokenizer.encode, pair)
        space = self._room - 2 - asked.size
        self.shortened += 0 <= space < shown.size
        shown = shown[max(shown.size - max(space, 0), 0) :]
        self.add(np.concatenate([[tokenizer.begin], shown, asked, [tokenizer.end]]), 1 + shown.size)

    @property
    def pairs(self) -> Pairs:
        tokens = np.frombuffer(self._tokens, np.int32)
        starts, seen = (np.array(each, dtype=np.int64) for each in (self._starts, self._seen))
        return Pairs(tokens, starts, seen, np.frombuffer(self._asked, np.bool_) if self._asked else None)


def read_pairs(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Read pairs from JSON-lines files. Raises InputError: a line has no `input` and `target` strings."""
    for path in paths:
        for pair in json_records(path, ("input", "target")):
            yield pair["input"], pair["target"]


def write_pairs(
    directory: Path,
    given: tuple[Sequence[Path], float | Sequence[Path], Sequence[Path]],
    tokenizer_of: Callable[[str], Tokenizer],
    *,
    letters: bool,
    template: Path | None,
    room: int,
    width: int,
    packs: bool,
) -> dict[str, Any]:
    """Write the ids of both parts, and which pairs stand in which row where several do -> what there is to say of it.

    Args:
        given: the files, what is held out, and which files an error names, of both parts.
        tokenizer_of: gives the tokenizer; where it is made of `letters`, of all that the training part has.
        template: the tokenizer.json beside which a chat template is that writes pairs out.
        room: the tokens that fit into a row with one pair.
        width: the positions of a row.

    Raises:
        InputError: a line is no pair, or a part has none.
    """
    paths, held_out, origins = given
    parts: list[Iterator[Any]] = _split(read_pairs if template is None else read_chats, paths, held_out)
    tokenizer = tokenizer_of(_letters(_split(read_pairs, paths, held_out)[0]) if letters else "")
    add = _adder(tokenizer, template)
    writers = [PairWriter(room) for _ in PARTS]
    for writer, part in zip(writers, parts, strict=True):
        for each in part:
            add(writer, each)
    train, kept = (writer.pairs for writer in writers)
    check_parts(train, kept, origins)
    save_pairs(directory, train, kept, tokenizer)
    rows = Rows.of_one(len(train))
    if packs:
        fitted = [
            packed(directory, name, part.lengths, width - room, width, texts=False)
            for name, part in zip(PARTS, (train, kept), strict=True)
        ]
        rows = fitted[0][0]
    return {
        "pairs": len(train),
        "held_out_pairs": len(kept),
        "dropped": sum(writer.dropped for writer in writers),
        "shortened": sum(writer.shortened for writer in writers),
        "tokens": int(train.tokens.size),
        "vocabulary": tokenizer.size,
        "rows": len(rows),
        "padding": padding(train.lengths + (width - room), rows, width),
    }


def _letters(pairs: Iterator[Pair]) -> str:
    found = set[str]()
    for pair in pairs:
        found.update(*pair)
    return "".join(found)


def _adder(tokenizer: Tokenizer, template: Path | None) -> Callable[[PairWriter, Any], None]:
    if template is None:
        return lambda writer, pair: writer.add_pair(pair, tokenizer)
    assert isinstance(tokenizer, FastTokenizer)
    chats, fast = read_chat_template(template), tokenizer

    def add(writer: PairWriter, chat: Chat) -> None:
        writer.add_chat(*chats.encode(chat, fast))

    return add


def _split(
    read: Callable[[Sequence[Path]], Iterator[Any]], paths: Sequence[Path], held_out: float | Sequence[Path]
) -> list[Iterator[Any]]:
    """Read both parts, of which the second one is the last share, for which all are counted, or files of its own."""
    if not isinstance(held_out, float):
        return [read(paths), read(held_out)]
    count = sum(1 for _ in read(paths))
    cut = count - round(count * held_out)
    return [islice(read(paths), cut), islice(read(paths), cut, None)]
