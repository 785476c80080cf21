"""The rows of a vocabulary as GGUF has them: every id's text, its kind, and what it is worth; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

LEAST = -10_000.0  # what an id without a token is worth


class Kind(IntEnum):
    """GGUF's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Added(NamedTuple):
    """A token that is found in a text before anything else is done with it."""

    id: int
    text: str
    special: bool
    normalized: bool
    strips: bool


@dataclass
class TokenTable:
    """What stands in the embedding's rows; one without a token is `[PADn]`, as llama.cpp's own writer has it."""

    size: int
    texts: list[str] = field(init=False)
    kinds: list[Kind] = field(init=False)
    scores: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [f"[PAD{row}]" for row in range(self.size)]
        self.kinds = [Kind.UNUSED] * self.size
        self.scores = [LEAST] * self.size

    def put(self, row: int, text: str, kind: Kind = Kind.NORMAL, score: float = 0.0) -> None:
        """Raises ValueError for a row that the model lacks."""
        if not 0 <= row < self.size:
            raise ValueError(f"its token {text!r} has the id {row}, and the model has {self.size:,} rows")
        self.texts[row], self.kinds[row], self.scores[row] = text, kind, score

    def check(self) -> None:
        """Raises ValueError for two ids of one text, which ends llama.cpp's process when it opens the file."""
        seen: dict[str, int] = {}
        for row, text in enumerate(self.texts):
            if (first := seen.setdefault(text, row)) != row:
                raise ValueError(f"its ids {first} and {row} are both {text!r}")


def added_tokens(document: Mapping[str, Any], config: Mapping[str, Any]) -> list[Added]:
    """List the added tokens of a tokenizer.json, and those that tokenizer_config.json has beside them."""
    given = {int(each["id"]): each for each in document.get("added_tokens") or ()}
    more = config.get("added_tokens_decoder")
    for row, each in more.items() if isinstance(more, dict) else ():
        given.setdefault(int(row), each)
    return [_added(row, each) for row, each in sorted(given.items())]


def _added(row: int, given: Mapping[str, Any]) -> Added:
    strips = any(given.get(key) for key in ("lstrip", "rstrip", "single_word"))
    special = bool(given.get("special"))
    return Added(row, str(given["content"]), special, bool(given.get("normalized", not special)), strips)


def overlapping(tokens: Iterable[Added]) -> str:
    """Find an added token within which another one may begin: which of the two a text has is then a rule."""
    texts = [token.text for token in tokens if len(set(token.text)) > 1]  # a run of one letter is found alike
    begins = {text[:length] for text in texts for length in range(1, len(text))}
    return next((text for text in texts if any(text[at:] in begins for at in range(1, len(text)))), "")
