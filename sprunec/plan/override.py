"""Put values from the command line into a plan, by JSON pointer, before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sprunec.errors import InputError
from sprunec.plan.pointer import show, unescape
from sprunec.plan.source import Source


def override(source: Source, values: Mapping[str, Any]) -> Source:
    """The source with the values in it; what is put in has no line. Objects on the way are made when absent."""
    if not values:
        return source
    document = copy.deepcopy(source.value)
    for pointer, value in values.items():
        _put(document, pointer, value, source)
    places = {at: place for at, place in source.places.items() if not _within(at, values)}
    keys = {at: place for at, place in source.keys.items() if not _within(at, values)}
    return replace(source, value=document, places=places | dict.fromkeys(values, (0, 0)), keys=keys)


def _put(document: Any, pointer: str, value: Any, source: Source) -> None:
    steps = [unescape(step) for step in pointer.split("/")]
    if len(steps) < 2 or steps[0]:
        raise _nowhere(source, pointer, 'write it as "/training/learning_rate"')
    for step in steps[1:-1]:
        document = _enter(document, step, source, pointer)
    last = steps[-1]
    if isinstance(document, list):
        document[_index(document, last, source, pointer)] = value
    elif isinstance(document, dict):
        document[last] = value
    else:
        raise _nowhere(source, pointer, f"{show(document)} has no entries")


def _enter(node: Any, step: str, source: Source, pointer: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, step, source, pointer)]
    if isinstance(node, dict):
        return node.setdefault(step, {})
    raise _nowhere(source, pointer, f"{show(node)} has no entries")


def _index(node: list[Any], step: str, source: Source, pointer: str) -> int:
    if step.isascii() and step.isdecimal() and int(step) < len(node):
        return int(step)
    raise _nowhere(source, pointer, f"the list has {len(node)} entries, counted from 0")


def _within(pointer: str, values: Mapping[str, Any]) -> bool:
    return any(pointer == place or pointer.startswith(f"{place}/") for place in values)


def _nowhere(source: Source, pointer: str, hint: str) -> InputError:
    return InputError.at(source.file, f"{show(pointer)} is no place in the plan", hint, code="bad-override")
