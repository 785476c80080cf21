"""Options of passes are typed as their schemas say, and nothing that a plan may write goes unread."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from sprunec.plan.declared import PASSES
from sprunec.plan.schema import pass_names, properties

# what the whole plan decides, and what lowering finds out
ADDED = {"seed", "max_length", "batch_size", "precision", "first_step", "content", "even", "details"}
ADDED |= {"names", "contents", "beside", "library", "input_first"}  # of tasks, and by the family
SEARCHED = {"search": {"limits", "count", "table"}}  # by what a search has found
SEARCHED["measure-latency"] = {"grid", "multiple_of", "dtype", "machine"}
# what lowering reads, and no pass
LOWERED = {"pass", "checkpoint_every", "weights", "gates_for", "save_mask", "mask_form", "compensate", "path", "dtype"}
LOWERED |= {"tasks", "chosen", "finalists", "refine", "latency_table", "save_table", "gguf"}
KINDS = {"integer": int, "number": float, "boolean": bool, "string": str, "null": type(None)}
OPTIONS = {name: PASSES[name].options for name in PASSES}
OPTIONS["evaluate"] = OPTIONS["evaluate-tasks"]  # what plans call so; held-out text they ask for in a section


def test_the_schema_names_the_passes_that_plans_may_name() -> None:
    assert set(pass_names()) == {name for name in PASSES if PASSES[name].lower is not None}


@pytest.mark.parametrize("name", pass_names())
def test_options_of_a_pass_are_its_schemas(name: str) -> None:
    known, hints = properties(f"passes/{name}"), get_type_hints(OPTIONS[name])
    added = ADDED | SEARCHED.get(name, set())
    for each in fields(OPTIONS[name]):
        assert each.name in known or each.name in added, each.name
        if each.name in known and each.name not in added:
            assert matches(hints[each.name], known[each.name]), (each.name, hints[each.name])


@pytest.mark.parametrize("name", pass_names())
def test_every_option_of_a_plan_is_read(name: str) -> None:
    read = {each.name for options in OPTIONS.values() for each in fields(options)} | {"batches"}
    assert not properties(f"passes/{name}").keys() - read - LOWERED


def matches(hint: Any, rule: dict[str, Any]) -> bool:
    """Whether a value that the schema lets through, and `finish` has put into one form, can have the type."""
    kinds = rule.get("type", "string" if "enum" in rule or "if" in rule else "object")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    found = get_args(hint) if get_origin(hint) not in (tuple, None) and type(None) in get_args(hint) else (hint,)
    plain = {kind for kind in found if get_origin(kind) is None}
    wanted = {KINDS[kind] for kind in kinds if kind in KINDS and kind != "null"}
    return not wanted or bool(plain & wanted) or any(get_origin(kind) is tuple for kind in found)
