"""Tokens from text and back: by characters, or by a vocabulary file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sprunec.data.fast_tokenizer import FastTokenizer
from sprunec.durable import read_file, write_new
from sprunec.families.vocabulary import Vocabulary

SPECIAL = ("<pad>", "<unk>")
UNKNOWN_ID = SPECIAL.index("<unk>")


@dataclass(frozen=True)
class Characters:
    """One id a character, after <pad> 0 and <unk> 1; characters it was not built from are <unk>.

    The marks `begin` and `end` stand behind the characters, whose ids do not depend on whether documents are marked.
    """

    vocabulary: tuple[str, ...]
    unknown: ClassVar[int] = UNKNOWN_ID

    @classmethod
    def build(cls, text: str) -> Characters:
        return cls((*SPECIAL, *sorted(set(text))))

    @property
    def size(self) -> int:
        """Count the ids that a text may have."""
        return len(self.vocabulary)

    @property
    def begin(self) -> int:
        return self.size

    @property
    def end(self) -> int:
        return self.size + 1

    def encode(self, text: str) -> NDArray[np.int32]:
        """Turn text into (characters,) ids."""
        known = np.array([ord(character) for character in self.vocabulary[len(SPECIAL) :]], dtype=np.uint32)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        if not known.size:
            return np.full(codes.size, UNKNOWN_ID, dtype=np.int32)
        place = np.minimum(np.searchsorted(known, codes), known.size - 1)
        return np.where(known[place] == codes, place + len(SPECIAL), UNKNOWN_ID).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.vocabulary[i] if len(SPECIAL) <= i < self.size else "\ufffd" for i in ids)

    def to_json(self) -> list[str]:
        return list(self.vocabulary)


Tokenizer = Characters | Vocabulary | FastTokenizer


def save_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    write_new(directory / "vocabulary.json", json.dumps(tokenizer.to_json()))


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read what `save_tokenizer` wrote."""
    content = json.loads(read_file(directory / "vocabulary.json"))
    if isinstance(content, list):
        return Characters(tuple(content))
    if "pieces" in content:
        return Vocabulary(tuple(content["pieces"]))
    return FastTokenizer(content["tokenizer"], tuple(content["marks"]))
