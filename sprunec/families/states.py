"""The states inside a model that can be watched, by the modules that they enter and leave; needs no torch.

A *state* is a tensor (B, N, width): B sequences, N positions. `[pre]name` is a module's first input, `[post]name` its
output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import Widths, card_of

SIDES = ("pre", "post")
_POINT = r"\[(pre|post)\]([^\[\]:]+)"
_PAIR = re.compile(rf"{_POINT}:{_POINT}")


@dataclass(frozen=True)
class Point:
    """One state of a model: what enters (`pre`) or leaves (`post`) a module."""

    side: str
    module: str

    def __str__(self) -> str:
        return f"[{self.side}]{self.module}"

    def width(self, config: ModelConfig) -> int:
        """Tell how wide the state is.

        Raises:
            KeyError: the model has no such module.
        """
        return state_widths(config)[self.module][SIDES.index(self.side)]


@dataclass(frozen=True)
class Pair:
    """A state of the student, and the teacher's that it is drawn to."""

    student: Point
    teacher: Point

    @classmethod
    def read(cls, written: str) -> Pair:
        """Read `[post]a:[pre]b`, student first.

        Raises:
            ValueError: it is not of this form.
        """
        if (match := _PAIR.fullmatch(written)) is None:
            raise ValueError(f"{written!r} is not [pre|post]module:[pre|post]module")
        return cls(Point(match[1], match[2]), Point(match[3], match[4]))

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


def state_widths(config: ModelConfig) -> dict[str, Widths]:
    """Give the widths of first input and output of every module that is given hidden states, and is there."""
    return card_of(config).state_widths(config)
