"""sprunec: a pruning compiler for language models.

    plan = read_plan("plan.json")         what the user wants, checked
    graph = lower(plan)                   every step spelled out
    report = execute(graph, "runs/x")     do it, or what is left of it
    model = load("runs/x/model/sprunec")  the small model
    write_dataset("data", records)        token ids as a binary set in CPM-Live's form

Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sprunec.bmcook.data.set_writer import write_dataset
    from sprunec.compiler.lower import lower
    from sprunec.execution.execute import execute
    from sprunec.models.loading import load
    from sprunec.plan.plan import read_plan

__all__ = ["execute", "load", "lower", "read_plan", "write_dataset"]
__version__ = "0.1.0"

_HOMES = {
    "execute": "sprunec.execution.execute",
    "load": "sprunec.models.loading",
    "lower": "sprunec.compiler.lower",
    "read_plan": "sprunec.plan.plan",
    "write_dataset": "sprunec.bmcook.data.set_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
