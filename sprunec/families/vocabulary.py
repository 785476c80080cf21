"""A tokenizer of jieba's words, each cut into the longest pieces that a vocabulary file has.

A vocabulary file has one piece a line; its line is its id. Needs the package jieba (0.42) to encode, not to decode.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.errors import Diagnostic, InputError
from sprunec.file_kinds import foreign
from sprunec.text_files import read_lines

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
WRITTEN = {"</n>": "\n", "</_>": " "}
LONGEST_WORD = 200
WANTED = "a vocabulary"
HINTS = {"": "give the model's own vocabulary: a text file with one piece a line"}
_REMEMBERED = 1 << 16


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary in a file; raises as `vocabulary_lines`."""
    return Vocabulary(tuple(WRITTEN.get(piece, piece) for piece in vocabulary_lines(path)))


def vocabulary_lines(path: Path) -> tuple[str, ...]:
    """List the pieces in a file, as they are written there.

    Raises:
        InputError: it is no UTF-8 text, a line is blank or there twice, or <unk>, <s> or </s> is missing.
    """
    places: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, WANTED, hints=HINTS), start=1):
        piece = line.strip()
        if not piece or piece in places:
            message = f"{piece!r} stands on line {places[piece]} already" if piece else "the line is blank"
            hint = "remove the line: ids are the numbers of the lines"
            finding = Diagnostic("bad-vocabulary", message, hint, file=str(path), line=number)
            raise foreign(path, WANTED, ("text",), HINTS) or InputError(finding)
        places[piece] = number
    if missing := [special for special in (UNKNOWN, BEGIN, END) if special not in places]:
        told = InputError.at(path, f"has no line {missing[0]}", "give a vocabulary with these special pieces")
        raise foreign(path, WANTED, ("text",), HINTS) or told
    return tuple(places)


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id; `encode` adds no marks, and what no piece fits becomes <unk>."""

    pieces: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.pieces)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: place for place, piece in enumerate(self.pieces)}

    @property
    def unknown(self) -> int:
        return self.ids[UNKNOWN]

    @property
    def begin(self) -> int:
        return self.ids[BEGIN]

    @property
    def end(self) -> int:
        return self.ids[END]

    def encode(self, text: str) -> NDArray[np.int32]:
        """Turn text into (n,) ids. Raises InputError: jieba is not installed."""
        known: dict[str, tuple[int, ...]] = {}
        found: list[int] = []
        for word in _words(text):
            if word not in known:
                if len(known) >= _REMEMBERED:
                    known.clear()
                known[word] = tuple(self.pieces_of(word))
            found.extend(known[word])
        return np.array(found, dtype=np.int32)

    def pieces_of(self, word: str) -> Iterator[int]:
        """Give the ids of one word, the longest piece first tried at every place."""
        if len(word) > LONGEST_WORD:
            yield self.unknown
            return
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                if (piece := self.ids.get(word[start:end])) is not None:
                    yield piece
                    start = end
                    break
            else:
                yield self.unknown
                start += 1

    def decode(self, ids: Iterable[int]) -> str:
        """Join pieces; negative ids are skipped."""
        return "".join(self.pieces[i] if i < len(self.pieces) else "\ufffd" for i in ids if i >= 0)

    def to_json(self) -> dict[str, Any]:
        return {"pieces": list(self.pieces)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.pieces))


_CUTTER: list[Any] = []


def _words(text: str) -> Iterator[str]:
    """jieba's words in its exact mode. Its dictionary is read anew, not from the cache it leaves in a shared folder."""
    if not _CUTTER:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import jieba
        except ImportError as error:
            message = "a vocabulary file needs the package jieba to cut text into words"
            raise InputError.in_option("tokenizer", message, "pip install 'sprunec[jieba]'") from error
        jieba.setLogLevel(logging.WARNING)
        cutter = jieba.Tokenizer()
        cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
        cutter.initialized = True
        _CUTTER.append(cutter)
    words: Iterator[str] = _CUTTER[0].cut(text)
    return words
