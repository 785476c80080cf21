"""Choices with their damages as an artifact: the scores that say who a choice's members are, and a list in JSON.

    {"damage": "fisher", "tokens": 4608, "choices": [
      {"layer": 0, "sublayer": "attention", "kept": {"kv_group": 2, "head": 6}, "damage": 0.0123}, ...]}

`kept` of what is absent is {}, and the damage of what stays whole 0. Of the kind "exchange" they are changes of a model
that is cut, so the damage of what that has is 0, and others may be negative.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sprunec.durable import write_new
from sprunec.errors import InputError
from sprunec.masks.mask_tensors import load_scores, save_scores
from sprunec.plan.search.choices import Choice
from sprunec.text_files import read_json
from sprunec.units import INSIDE, UNITS, Key

FILE, WANTED, HINT = "damages.json", "a list of choices with their damages", "score the choices again"
KINDS = ("fisher", "kl", EXCHANGE := "exchange")
KEYS = {"layer": int, "sublayer": str, "kept": dict, "damage": float}


@dataclass(frozen=True)
class Damages:
    """What choices do to the model's output.

    Attributes:
        kind: how they were measured, "fisher", "kl" or "exchange".
        tokens: on how many.
        scores: by layer and unit, what the members of a choice are the best by; see `members`.
        choices: each with its damage in nats a token.
    """

    kind: str
    tokens: int
    scores: Mapping[Key, Tensor]
    choices: tuple[tuple[Choice, float], ...]


def save_damages(directory: Path, damages: Damages) -> None:
    """Save them into a directory."""
    rows = [
        {"layer": choice.layer, "sublayer": choice.sublayer, "kept": dict(choice.kept), "damage": damage}
        for choice, damage in damages.choices
    ]
    save_scores(directory, damages.scores)
    document = {"damage": damages.kind, "tokens": damages.tokens, "choices": rows}
    write_new(directory / FILE, json.dumps(document, allow_nan=False))


def load_damages(directory: Path) -> Damages:
    """Load what `save_damages` has saved.

    Raises:
        InputError: it is anything else; names the entry.
    """
    path = directory / FILE
    content = read_json(path, WANTED, HINT, once=True)
    if not isinstance(content, dict) or content.keys() != {"damage", "tokens", "choices"}:
        raise InputError.at(path, f"this is not {WANTED}", HINT)
    kind, tokens, rows = content["damage"], content["tokens"], content["choices"]
    if kind not in KINDS or type(tokens) is not int or tokens < 1 or not isinstance(rows, list):
        raise InputError.at(path, f"this is not {WANTED}", HINT)
    found = [_row(path, number, row, -math.inf if kind == EXCHANGE else 0.0) for number, row in enumerate(rows)]
    seen = {(choice.layer, choice.sublayer, tuple(sorted(choice.kept.items()))) for choice, _ in found}
    if len(seen) < len(found):
        raise InputError.at(path, "one choice has two damages", HINT)
    return Damages(kind, tokens, load_scores(directory), tuple(found))


def _row(path: Path, number: int, row: Any, least: float) -> tuple[Choice, float]:
    """Read one entry, whose damage is so much at least."""
    if not isinstance(row, dict) or any(type(row.get(key)) is not kind for key, kind in KEYS.items()):
        raise InputError.at(path, f"/choices/{number} lacks one of {', '.join(KEYS)}", HINT)
    kept, damage = row["kept"], row["damage"]
    known = row["sublayer"] in ("attention", "feed_forward", "block") and row["layer"] >= 0 and len(row) == len(KEYS)
    inside = known and all(INSIDE.get(unit) in UNITS[row["sublayer"]].sublayers for unit in kept)
    if not inside or any(type(count) is not int or count < 1 for count in kept.values()):
        raise InputError.at(path, f"/choices/{number} is no choice", HINT)
    if not math.isfinite(damage) or damage < least:
        raise InputError.at(path, f"/choices/{number} has the damage {damage}", HINT)
    return Choice(row["layer"], row["sublayer"], kept), damage
