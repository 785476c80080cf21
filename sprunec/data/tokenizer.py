"""Words from text and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAD, UNKNOWN = "<pad>", "<unk>"
SPECIAL = (PAD, UNKNOWN)
UNKNOWN_ID = SPECIAL.index(UNKNOWN)


@dataclass(frozen=True)
class Characters:
    """One id a character, after <pad> 0 and <unk> 1; characters it was not built from are <unk>."""

    vocabulary: tuple[str, ...]

    @classmethod
    def build(cls, text: str) -> Characters:
        return cls((*SPECIAL, *sorted(set(text))))

    def encode(self, text: str) -> NDArray[np.int32]:
        """text -> (characters,) ids."""
        known = np.array([ord(character) for character in self.vocabulary[len(SPECIAL) :]], dtype=np.uint32)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        if not known.size:
            return np.full(codes.size, UNKNOWN_ID, dtype=np.int32)
        place = np.minimum(np.searchsorted(known, codes), known.size - 1)
        return np.where(known[place] == codes, place + len(SPECIAL), UNKNOWN_ID).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.vocabulary[i] if len(SPECIAL) <= i < len(self.vocabulary) else "\ufffd" for i in ids)

    def to_json(self) -> list[str]:
        return list(self.vocabulary)

    @classmethod
    def from_json(cls, vocabulary: Sequence[str]) -> Characters:
        return cls(tuple(vocabulary))
