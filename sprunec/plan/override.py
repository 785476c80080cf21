"""Put values from the command line into a plan, by JSON pointer, before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sprunec.errors import InputError, show
from sprunec.plan.pointer import unescape
from sprunec.plan.source import Source


def override(source: Source, values: Mapping[str, Any]) -> Source:
    """The source with the values in it; what is put in has no line. Objects on the way are made when absent.

    Raises:
        InputError: a pointer is no place in the plan.
    """
    if not values:
        return source
    document = copy.deepcopy(source.value)
    for pointer, value in values.items():
        try:
            _put(document, [unescape(step) for step in pointer.split("/")], value)
        except ValueError as error:
            message = f"{show(pointer)} is no place in the plan"
            raise InputError.at(source.file, message, str(error), code="bad-override") from None
    places, keys = (
        {at: place for at, place in marks.items() if not any(at == new or at.startswith(f"{new}/") for new in values)}
        for marks in (source.places, source.keys)
    )
    return replace(source, value=document, places=places | dict.fromkeys(values, (0, 0)), keys=keys)


def _put(node: Any, steps: list[str], value: Any) -> None:
    """Raises ValueError, which says why not, where the steps lead nowhere."""
    root, *way = steps
    if root or not way:
        raise ValueError('write it as "/training/learning_rate"')
    for place, step in enumerate(way, start=1):
        if isinstance(node, list):
            if not (step.isascii() and step.isdecimal() and int(step) < len(node)):
                raise ValueError(f"the list has {len(node)} entries, counted from 0")
            key: Any = int(step)
        elif isinstance(node, dict):
            key = step
        else:
            raise ValueError(f"{show(node)} has no entries")
        if place == len(way):
            node[key] = value
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})
