"""BMCook's files as they are read: which file is which, what its schema says, and which keys nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.errors import Diagnostic, InputError, show
from sprunec.plan.bmcook_flags import kind_of
from sprunec.plan.json_reader import escape
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import nearest, schema_findings
from sprunec.plan.source import Source, read_source

BESIDE = {"l0_pruning": "l0_pruning.json", "sprune": "sprune.json"}


def read_second(path: str | Path, wanted: str) -> tuple[Source, list[Diagnostic]]:
    """One l0_pruning.json or sprune.json.

    Raises:
        InputError: it isn't there, or no JSON, or not the one that is `wanted`.
    """
    source = read_source(path, BESIDE[wanted], f"give the {BESIDE[wanted]} with --sprune-config")
    if kind_of(source.value) != wanted:
        message = f"this is no {BESIDE[wanted]}: it has neither of its sections"
        raise InputError(source.find("foreign-file", "", message, f"give the {BESIDE[wanted]} with --sprune-config"))
    return source, [*source.problems, *findings(source, wanted)]


def findings(source: Source, schema: str) -> list[Diagnostic]:
    """What the schema says, and the keys that it doesn't name, which the original ignored in silence."""
    return [*schema_findings(source, schema), *_strangers(source, properties(schema), "", source.value)]


def _strangers(source: Source, known: dict[str, Any], pointer: str, value: dict[str, Any]) -> Iterator[Diagnostic]:
    for key, inner in value.items():
        place = f"{pointer}/{escape(key)}"
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {show(near)}?" if near else "it is ignored"
            yield source.warn("unknown-key", place, f"unknown key {show(key)}", hint, key=True)
        elif isinstance(inner, dict) and "properties" in known[key]:
            yield from _strangers(source, properties(known[key]), place, inner)


def demote(found: list[Diagnostic], pointer: str) -> list[Diagnostic]:
    """What is wrong in a part that isn't used stops nobody."""
    return [
        replace(each, severity="warning", hint="it is not used")
        if each.severity == "error" and (each.pointer == pointer or each.pointer.startswith(f"{pointer}/"))
        else each
        for each in found
    ]
