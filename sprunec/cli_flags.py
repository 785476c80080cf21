"""The flags of BMCook's script as options of our commands: declared in `plan.bmcook_flags`, handed over as one."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from sprunec.plan.bmcook_flags import NO_EFFECT, Flags, option

PANEL = "Flags of BMCook's script, by their names"


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose parameter `flags` is made of options named as the script's flags."""
    kinds, options = typing.get_type_hints(Flags), {}
    for each in fields(Flags):
        names, text = (option(each.name), *each.metadata["names"]), each.metadata["help"]
        hidden = text.startswith(NO_EFFECT)
        flag = typer.Option(*names, help=text, rich_help_panel=PANEL, hidden=hidden, show_default=False)
        options[each.name] = inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kinds[each.name], flag]
        )

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        flags = Flags(**{name: given.pop(name) for name in options})
        command(**given, flags=flags)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    parameters = [*own, *options.values()]
    vars(wrapper)["__signature__"] = inspect.Signature(parameters)
    del vars(wrapper)["__wrapped__"]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
