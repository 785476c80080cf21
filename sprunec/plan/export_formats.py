"""What an export format declares, the table of all, and what they ask of a plan.

All of it is told before any work: training that ends in a model which the format cannot hold would be in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import show
from sprunec.families.base_config import ModelConfig
from sprunec.plan.declared import PassSpec
from sprunec.plan.targets import quoted
from sprunec.plan.written_plan import Step, WrittenPlan
from sprunec.registry import Registry
from sprunec.units import SIZE_TARGETS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs

Options = tuple[dict[str, Any], dict[str, tuple[Path, ...]]]


@dataclass(frozen=True)
class Emission:
    """A model that is to be exported.

    Attributes:
        model, source: directories of the model, and of the plan's input model.
        options, files: those of the `emit` pass; see `Format.options`.
    """

    model: Path
    source: Path
    config: ModelConfig
    options: Mapping[str, Any]
    files: Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Reopened:
    """An exported model opened again from disk, as its users open it.

    Attributes:
        stored: what its weights are stored in.
        arithmetic: what it computes in, or what its weights have been rounded to once more, if that is coarser.
        logits: what it says to inputs, (n, V).
        inputs: for a batch, those that it can be given.
        skipped: how many of the first positions of each row it gives no logits for.
        gaps: once `logits` has been called, how far a text's logits, with the last positions one by one behind past
            keys and values, were from those in one go; empty where that is not compared.
        own_code: it brings classes of its own, which only those run who trust it.
    """

    stored: torch.dtype
    arithmetic: torch.dtype
    logits: Callable[[list[Inputs]], Tensor]
    inputs: Callable[[Inputs], list[Inputs]] = lambda batch: [batch]
    skipped: int = 0
    gaps: list[float] = field(default_factory=list)
    own_code: bool = False


@dataclass(frozen=True)
class Opening:
    """How users open a directory, which its model card says.

    Attributes:
        package: that does it, as the hub calls it.
        code: lines of Python.
        remark: what else is to be known.
    """

    package: str
    code: tuple[str, ...]
    remark: str = ""


@dataclass(frozen=True)
class Format:
    """One export format; a file in `formats/` has it, whose import brings no torch.

    Attributes:
        write: makes the directory and fills it; raises FormatError where the format cannot hold the model. Returns what
            the report says about it.
        reopen: the directory, by the config and the weights it was made of. None: `compare` opens it as our own.
        package: one that it needs, and how it is installed.
        alike: units of which all layers have as many.
        same_heads: and not as many heads only, but the same ones.
        obstacles: code, reason and remedy of what keeps it from holding a config's model.
        instead: what to emit where it cannot be.
        shares: whether it holds a config's model by second names of the files that this has, which takes no disk.
        in_memory: how many times it has the model's weights in memory.
        opens: bytes of memory that a process of its own takes, in which a config's model is opened again.
        folds: the weights have factors folded in, and are stored in a dtype of choice.
        opening: of a directory, and what `write` has returned, what its model card says of it; None: it has no card.
        options: of a Plan, what decides what it holds besides the weights and the dtype, and the files that go into it.
    """

    name: str
    write: Callable[[Emission, Path], dict[str, Any]]
    reopen: Callable[[Path, ModelConfig, Tensors], Reopened] | None = None
    package: tuple[str, str] | None = None
    alike: tuple[str, ...] = ()
    same_heads: bool = False
    obstacles: Callable[[ModelConfig], Iterator[tuple[str, str, str]]] = lambda config: iter(())
    instead: str = ""
    shares: Callable[[ModelConfig], bool] = lambda config: False
    in_memory: int = 0
    opens: Callable[[ModelConfig], float] = lambda config: 0.0
    folds: bool = False
    opening: Callable[[Path, Mapping[str, Any]], Opening] | None = None
    options: Callable[[Any], Options] = lambda plan: ({}, {})


FORMATS = Registry(Format, "sprunec.formats")


def formats_of(passes: Iterable[PassSpec]) -> tuple[Format, ...]:
    """Give what a plan with these passes ends with."""
    return tuple(FORMATS[name] for spec in passes if spec.name == "emit" for name in spec.options["formats"])


def heads_tied(plan: WrittenPlan) -> None:
    """Find `tie_heads` where heads are not counted, or layers have not the same ones left."""
    alike = plan.config is None or len(plan.config.head_sets) < 2
    for step in plan.steps:
        units, tie = step.units, step.options.get("tie_heads")
        size = [key for key in SIZE_TARGETS if tie and key in step.options["target"]]
        if tie and "head" not in units:
            message = f"tie_heads is about heads, and the pass cuts {quoted(units)}"
            step.error("tie-mismatch", "tie_heads", message, 'remove it, or choose unit "head"')
        elif size:
            message = f"tied heads are counted, and {size[0]} leaves their number open"
            step.error("tie-mismatch", "target", message, "give num_heads")
        elif tie and not alike:
            message = "the layers don't have the same heads left to be tied"
            hint = "tie them in the first pass that cuts heads, or remove it"
            step.error("tie-mismatch", "tie_heads", message, hint)
        alike = alike and ("head" not in units or bool(tie))


def formats_fit(plan: WrittenPlan) -> None:
    """Check that formats can hold the model and what passes leave of it, their packages, and an option of some."""
    emits = [step for step in plan.valid_steps if step.name == "emit"]
    emitted = [(step, FORMATS[name]) for step in emits for name in step.options["formats"]]
    for form in dict.fromkeys(form for _, form in emitted):
        for code, why, hint in form.obstacles(plan.config) if plan.config is not None else ():
            plan.error(code, "/model/config", f"the format {form.name} can't hold this model: {why}", hint)
        for step in plan.valid_steps:
            if step.declared.by_target and (told := _uneven(step.options, form)):
                what = "width" if "dim_ff" in form.alike else "number of query heads"
                message = f"{told[0]}, and the format {form.name} has one {what} for all"
                step.error("uneven-layers", "", message, f"{told[1]}, or {form.instead}")
            if "grid" in step.options and (hint := _loose(step, form)):
                same = form.same_heads and "head" in step.units
                what = "the same heads" if same else f"as many {show(form.alike[0])} units in all layers"
                message = f"a search lets layers differ, and the format {form.name} has {what}"
                step.error("uneven-layers", "units", message, f"{hint}, or {form.instead}")
    for step, form in emitted:
        if "dtype" in step.written and not any(each.folds for _, each in emitted):
            step.unused("dtype", "dtype is not used without a format that folds factors into its weights")
        if form.package is not None and find_spec(form.package[0]) is None:
            message = f"the format {form.name} needs the package {form.package[0]}, which is not installed"
            tell = step.error if plan.strict else step.warn
            tell("missing-package", "formats", message, f"pip install '{form.package[1]}'")


def _uneven(options: Mapping[str, Any], form: Format) -> tuple[str, str] | None:
    """Say how a pass may leave unlike layers, where a format has something for all of them, and what to do."""
    size = [key for key in SIZE_TARGETS if key in options["target"]]
    units = [unit for unit in options["unit"] if unit in form.alike]
    if size and units:
        return f"{size[0]} lets layers keep unlike numbers of {show(units[0])} units", "give counts"
    if form.same_heads and "head" in units and not options["tie_heads"]:
        return "each layer keeps heads of its own", 'add "tie_heads": true'
    counted = [unit for unit in units if unit != "head" or not form.same_heads]
    if options["budget"] == "global" and counted:
        return f'"global" lets layers keep unlike numbers of {show(counted[0])} units', 'write "budget": "per-layer"'
    return None


def _loose(step: Step, form: Format) -> str:
    """Say what makes a search leave layers that are enough alike for a format; nothing where it does."""
    options, heads = step.options, {"head", "kv_group"}
    if not set(step.units) & set(form.alike) or (options["uniform"] and not form.same_heads):
        return ""
    if form.same_heads and "head" in step.units:
        return 'leave "head" out of units'
    if set(form.alike) <= heads:
        return "" if options["same_heads"] else 'write "same_heads": true'
    return "" if options["uniform"] else 'write "uniform": true'
