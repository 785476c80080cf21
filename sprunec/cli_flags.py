"""The flags of BMCook's script as options of our commands: declared in `plan.bmcook_flags`, handed over as one."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from sprunec.plan.bmcook_flags import NO_EFFECT, Flags, option

PANEL = "Flags of BMCook's script, by their names"


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `flags` is made of options named as the script's flags."""
    kinds = typing.get_type_hints(Flags)
    options = [_parameter(each, kinds[each.name]) for each in fields(Flags)]
    names = [each.name for each in options]
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        flags = Flags(**{name: given.pop(name) for name in names})
        command(**given, flags=flags)

    vars(wrapper)["__signature__"] = inspect.Signature(own + options)
    vars(wrapper).pop("__wrapped__", None)
    wrapper.__annotations__ = {each.name: each.annotation for each in own + options}
    return wrapper


def _parameter(each: Field[Any], kind: Any) -> inspect.Parameter:
    text = each.metadata["help"]
    described = typer.Option(
        option(each.name),
        *each.metadata["names"],
        help=text,
        rich_help_panel=PANEL,
        hidden=text.startswith(NO_EFFECT),
        show_default=False,
    )
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, described]
    )
