"""The states inside a CPM-Ant that can be watched, by the modules that they enter and leave; needs no torch.

A *state* is a tensor (B, N, width): B rows, N columns. `[pre]name` is a module's first input, `[post]name` its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sprunec.families.cpm_ant.config import ModelConfig

SIDES = ("pre", "post")
Widths = tuple[int, int]
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
        """How wide the state is.

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
        """`[post]a:[pre]b`, student first.

        Raises:
            ValueError: it is not of this form.
        """
        match = _PAIR.fullmatch(written)
        if match is None:
            raise ValueError(f"{written!r} is not [pre|post]module:[pre|post]module")
        return cls(Point(match[1], match[2]), Point(match[3], match[4]))

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


def state_widths(config: ModelConfig) -> dict[str, Widths]:
    """Width of the first input and of the output of every module that is given hidden states; absent ones are left out.

    Those that only group others (`encoder`, `self_att`) are never called, so they see nothing.
    """
    width = config.dim_model
    found = {"encoder.output_layernorm": (width, width)}
    for index in range(config.num_layers):
        found[f"encoder.layers.{index}"] = (width, width)
        found.update(_attention(config, index))
        found.update(_feed_forward(config, index))
    return found


def _attention(config: ModelConfig, index: int) -> Iterator[tuple[str, Widths]]:
    layer, width, place = config.layers[index], config.dim_model, f"encoder.layers.{index}.self_att"
    if layer.heads:
        inner = layer.heads * layer.dim_head
        yield f"{place}.layernorm_before_attention", (width, width)
        yield f"{place}.self_attention", (width, width)
        for name in ("project_q", "project_k", "project_v"):
            yield f"{place}.self_attention.{name}", (width, inner)
        yield f"{place}.self_attention.attention_out", (inner, width)


def _feed_forward(config: ModelConfig, index: int) -> Iterator[tuple[str, Widths]]:
    layer, width, place = config.layers[index], config.dim_model, f"encoder.layers.{index}.ffn"
    if layer.dim_ff:
        yield place, (width, width)
        yield f"{place}.layernorm_before_ffn", (width, width)
        yield f"{place}.ffn", (width, width)
        for name in ("w_in", "w_in.w_0", "w_in.w_1"):
            yield f"{place}.ffn.{name}", (width, layer.dim_ff)
        yield f"{place}.ffn.w_out", (layer.dim_ff, width)
