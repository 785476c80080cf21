"""Open any file that says what to do: a native plan, or BMCook's bmcook.json as the native plan that it means.

Values from the command line are put into it by JSON pointer, before it is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

from sprunec.errors import InputError, show
from sprunec.families.detect import is_config
from sprunec.file_kinds import JSON, foreign
from sprunec.plan.bmcook_flags import NATIVE, NO_FLAGS, SECTIONS, Flags, kind_of, option
from sprunec.plan.json_reader import unescape
from sprunec.plan.model_config import path_as_config
from sprunec.plan.schema_errors import nearest
from sprunec.plan.source import Source, read_source


def read_any(path: str | Path, flags: Flags = NO_FLAGS, seconds: Sequence[str | Path] = ()) -> Source:
    """Read a native plan, with the flags put into it, or make the native plan of BMCook's files.

    Raise InputError where there is no such plan, or flags that it has no place for. `seconds` are l0_pruning.json
    files, a stage each.
    """
    for name, value in flags.given().items():
        if isinstance(value, float) and not isfinite(value):
            raise InputError.at(option(name), "this is no finite number", "give one")
    source = read_source(path)
    if told := foreign(Path(path), "a plan", {"text", *JSON}, {"": "name a plan, a JSON file"}):
        raise told
    if "passes" not in source.value and any(name in source.value for name in SECTIONS):
        # By name: that room stands above this one, and only whoever has such a file needs it.
        made: Source = import_module("sprunec.bmcook.plans.stages_to_plan").convert(source, seconds, flags)
        return made
    if other := _other_file(source.value):
        raise InputError(source.find("foreign-file", "", *other))
    foreign_flags = [option(name) for name in flags.given() if name not in NATIVE and name != "save"]
    if unused := [*foreign_flags, *map(str, seconds)]:
        message = f"{unused[0]} goes with BMCook's bmcook.json, and this is a plan of its own"
        raise InputError(source.find("foreign-flag", "", message, "edit the plan instead"))
    overrides = flags.native_overrides()
    if "/model/config" in overrides or "/model/checkpoint" in overrides:
        source = path_as_config(source)
    return replace(override(source, overrides), origins=flags.origins())


def _other_file(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """Say what a file is, and what to do, where it is neither a plan nor a bmcook.json."""
    if kind_of(value):
        message = "this is the file beside bmcook.json, not bmcook.json itself"
        return message, "name bmcook.json; this one is found beside it"
    if "passes" in value:
        return None
    if is_config(value):
        return "this is a model config, not a plan", "look into it with sprunec inspect"
    meant = [near for near in (nearest(name, SECTIONS) for name in value) if near]
    if value and not meant:
        return None
    sections = 'a plan has "passes", bmcook.json a section such as "pruning"'
    return "this is neither a plan nor a bmcook.json", f"did you mean {show(meant[0])}?" if meant else sections


def override(source: Source, values: Mapping[str, Any]) -> Source:
    """Put the values, which have no line, where their pointers lead; raise InputError where one leads nowhere.

    Objects on the way are made when absent.
    """
    document = copy.deepcopy(source.value)
    for pointer, value in values.items():
        root, *steps = map(unescape, pointer.split("/"))
        try:
            if root or not steps:
                raise ValueError('write it as "/training/learning_rate"')
            _put(document, steps, value)
        except ValueError as error:
            message = f"{show(pointer)} is no place in the plan"
            raise InputError.at(source.file, message, str(error), code="bad-override") from None
    places, keys = (
        {at: place for at, place in marks.items() if not any(f"{at}/".startswith(f"{new}/") for new in values)}
        for marks in (source.places, source.keys)
    )
    return replace(source, value=document, places=places | dict.fromkeys(values, (0, 0)), keys=keys)


def _put(node: Any, steps: list[str], value: Any) -> None:
    """Set the value where the steps lead; raise ValueError, which says why, where they lead nowhere."""
    key: Any = steps[0]
    if isinstance(node, list):
        if not (key.isascii() and key.isdecimal() and int(key) < len(node)):
            raise ValueError(f"the list has {len(node)} entries, counted from 0")
        key = int(key)
    elif not isinstance(node, dict):
        raise ValueError(f"{show(node)} has no entries")
    if steps[1:]:
        _put(node[key] if isinstance(node, list) else node.setdefault(key, {}), steps[1:], value)
    else:
        node[key] = value
