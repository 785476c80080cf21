"""Open any file that says what to do: a native plan, or BMCook's bmcook.json as the native plan that it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sprunec.errors import InputError
from sprunec.file_kinds import JSON, foreign
from sprunec.plan.bmcook_flags import (
    NATIVE,
    NO_FLAGS,
    SECTIONS,
    Flags,
    foreign_to_native,
    is_bmcook,
    kind_of,
    native_overrides,
    option,
)
from sprunec.plan.model_config import path_as_config
from sprunec.plan.override import override
from sprunec.plan.pointer import show
from sprunec.plan.schema_errors import nearest
from sprunec.plan.source import Source, read_source


def read_any(path: str | Path, flags: Flags = NO_FLAGS, seconds: Sequence[str | Path] = ()) -> Source:
    """A native plan with the flags in it, or the native plan of BMCook's files.

    Args:
        seconds: l0_pruning.json files, a stage each.

    Raises:
        InputError: there is no such plan, or flags that it has no place for.
    """
    for flag in flags.not_finite():
        raise InputError.at(flag, "this is no finite number", "give one")
    source = read_source(path)
    told = foreign(Path(path), "a plan", {"text", *JSON}, {"": "name a plan, a JSON file"})
    if told is not None:
        raise told
    if is_bmcook(source.value):
        from sprunec.bmcook.plans.stages_to_plan import convert

        return convert(source, seconds, flags)
    if kind_of(source.value):
        message = "this is the file beside bmcook.json, not bmcook.json itself"
        raise InputError(source.find("foreign-file", "", message, "name bmcook.json; this one is found beside it"))
    if "dim_model" in source.value and "passes" not in source.value:
        message = "this is a model config, not a plan"
        raise InputError(source.find("foreign-file", "", message, "look into it with sprunec inspect"))
    meant = {name: nearest(name, SECTIONS) for name in source.value}
    if "passes" not in source.value and (any(meant.values()) or not source.value):
        near = next((f"did you mean {show(section)}?" for section in meant.values() if section), "")
        message = "this is neither a plan nor a bmcook.json"
        hint = near or 'a plan has "passes", bmcook.json a section such as "pruning"'
        raise InputError(source.find("foreign-file", "", message, hint))
    unused = foreign_to_native(flags)
    if unused or seconds:
        what = unused[0] if unused else str(seconds[0])
        message = f"{what} goes with BMCook's bmcook.json, and this is a plan of its own"
        raise InputError(source.find("foreign-flag", "", message, "edit the plan instead"))
    overrides = native_overrides(flags)
    if "/model/config" in overrides or "/model/checkpoint" in overrides:
        source = path_as_config(source)
    named = {NATIVE[name]: (Source(option(name), None), "") for name in flags.given() if name in NATIVE}
    return replace(override(source, overrides), origins=named)
