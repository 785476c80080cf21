"""What layers keep in multiples of: about units of the pass, no more than a layer has, and a count target is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sprunec.errors import Diagnostic
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft, Step
from sprunec.plan.targets import UNITS_OF


def multiples_fit(draft: Draft, step: Step, most: Mapping[str, int]) -> Iterator[Diagnostic]:
    """About one pass; `most`: what a layer can have by then, by count target."""
    for name, multiple in ((step.options or {}).get("multiple_of") or {}).items():
        yield from _fits(draft, step, name, multiple, most[name])


def _fits(draft: Draft, step: Step, name: str, multiple: int, most: int) -> Iterator[Diagnostic]:
    options, pointer = step.options or {}, f"{step.pointer}/multiple_of/{name}"
    wanted = options["target"].get(name, 0)
    if not set(UNITS_OF[name]) & set(options["unit"]):
        units = " and ".join(show(unit) for unit in options["unit"])
        message = f"{name} is not what this pass cuts: its unit is {units}"
        hint = f"remove it, or add unit {show(UNITS_OF[name][0])}"
        yield draft.source.find("unit-mismatch", pointer, message, hint, key=True)
    elif multiple > most:
        message = f"{multiple} is above {most}, the most that a layer has here: all would keep none"
        yield draft.source.find("multiple-too-large", pointer, message, f"give at most {most}")
    elif wanted % multiple:
        message = f"{wanted} is not a multiple of {multiple}, and multiple_of asks for one"
        yield draft.source.find("uneven-target", f"{step.pointer}/target/{name}", message, _near(wanted, multiple))


def _near(wanted: int, multiple: int) -> str:
    below = wanted // multiple * multiple
    return f"give {below} or {below + multiple}" if below else f"give {multiple}"
