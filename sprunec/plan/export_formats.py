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
from sprunec.units import SIZE_TARGETS, SUBLAYERS, UNITS, gate_units

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
class Continued:
    """How a model goes on behind a text, with the likeliest token each time.

    Attributes:
        inputs: the text and what it has added, in one row, for the forward of our own.
        start: how many tokens the text has.
        pieces: what each token adds to the text.
    """

    inputs: Inputs
    start: int
    pieces: list[str]


@dataclass(frozen=True)
class Reopened:
    """An exported model opened again from disk, as its users open it.

    Attributes:
        stored: what its weights are stored in, a dtype or a format's own type.
        arithmetic: what it computes in, or what its weights have been rounded to once more, if that is coarser.
        logits: what it says to inputs, (n, V).
        inputs: for a batch, those that it can be given.
        skipped: how many of the first positions of each row it gives no logits for.
        gaps: once `logits` has been called, how far a text's logits, with the last positions one by one behind past
            keys and values, were from those in one go; empty where that is not compared.
        own_code: it brings classes of its own, which only those run who trust it.
        weights: what its weights have been rounded to, by the small model's names; None: they are as they were.
        continued: once `logits` has been called, how it goes on; empty where that is not asked.
        runtime: what has opened it; "" where the format's name says it.
    """

    stored: torch.dtype | str
    arithmetic: torch.dtype
    logits: Callable[[list[Inputs]], Tensor]
    inputs: Callable[[Inputs], list[Inputs]] = lambda batch: [batch]
    skipped: int = 0
    gaps: list[float] = field(default_factory=list)
    own_code: bool = False
    weights: Tensors | None = None
    continued: list[Continued] = field(default_factory=list)
    runtime: str = ""


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
        alike: units of which all layers of a config's model have as many.
        fixed: units of which a config's model has all, and why.
        multiples: of a config's model, and the format's own options: by unit, what its number is a multiple of for
            the format to have its best, and what is lost else.
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
    alike: Callable[[ModelConfig], tuple[str, ...]] = lambda config: ()
    fixed: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
    multiples: Callable[[ModelConfig, Mapping[str, Any]], Mapping[str, tuple[int, str]]] = lambda config, options: {}
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
    """Check that formats can hold the model and what passes leave of it, their packages, and options of some."""
    emits, config = [step for step in plan.valid_steps if step.name == "emit"], plan.config
    emitted = [(step, FORMATS[name]) for step in emits for name in step.options["formats"]]
    for step, form in emitted:
        if config is None:
            break
        for code, why, hint in form.obstacles(config):
            plan.error(code, "/model/config", f"the format {form.name} can't hold this model: {why}", hint)
        for other in plan.valid_steps:
            _cuts_fit(other, form, config)
            _widths_fit(other, form.multiples(config, step.options.get(form.name) or {}))
    for step, form in emitted:
        if "dtype" in step.written and not any(each.folds for _, each in emitted):
            step.unused("dtype", "dtype is not used without a format that folds factors into its weights")
        if form.package is not None and find_spec(form.package[0]) is None:
            message = f"the format {form.name} needs the package {form.package[0]}, which is not installed"
            tell = step.error if plan.strict else step.warn
            tell("missing-package", "formats", message, f"pip install '{form.package[1]}'")
    for step in emits:
        for name in (name for name in step.written if name in FORMATS and name not in step.options["formats"]):
            step.unused(name, f"{name} is about a format that is not emitted")


def _cuts_fit(step: Step, form: Format, config: ModelConfig) -> None:
    """Check that what a pass may leave is alike enough for a format."""
    alike, removes = form.alike(config), step.declared.removes == "units"
    for unit in (unit for unit in step.units if unit in form.fixed(config)):
        step.error("cannot-cut", "units" if "grid" in step.options else "unit", form.fixed(config)[unit], form.instead)
        return
    if whole := [unit for unit in gate_units(step.units) if unit in SUBLAYERS and unit in alike and removes]:
        message = f"a layer without its {whole[0].replace('_', '-')} is unlike others, and the format {form.name} has"
        hint = f'cut unit "block", which takes both, or {form.instead}'
        step.error("uneven-layers", "units" if "grid" in step.options else "unit", f"{message} all layers alike", hint)
        return
    if step.declared.by_target and (told := _uneven(step.options, form, alike)):
        what = "width" if "dim_ff" in alike else "number of query heads"
        message = f"{told[0]}, and the format {form.name} has one {what} for all"
        step.error("uneven-layers", "", message, f"{told[1]}, or {form.instead}")
    if "grid" in step.options and (hint := _loose(step, form, alike)):
        same = form.same_heads and "head" in step.units
        what = "the same heads" if same else f"as many {show(alike[0])} units in all layers"
        message = f"a search lets layers differ, and the format {form.name} has {what}"
        step.error("uneven-layers", "units", message, f"{hint}, or {form.instead}")


def _widths_fit(step: Step, wanted: Mapping[str, tuple[int, str]]) -> None:
    """Tell of numbers of units that a pass may leave, where a format has more of multiples."""
    options = step.options
    for unit in (unit for unit in wanted if unit in step.units and step.declared.removes == "units"):
        (multiple, lost), key = wanted[unit], UNITS[unit].target
        counted = options["target"].get(key, 1) if options.get("budget") == "per-layer" else 1
        if (options.get("multiple_of") or {}).get(key, counted) % multiple:
            message = f"the pass may leave a number of {show(unit)} that is no multiple of {multiple}: {lost}"
            step.warn("uneven-width", "multiple_of", message, f'write "multiple_of": {{{show(key)}: {multiple}}}')


def _uneven(options: Mapping[str, Any], form: Format, alike: tuple[str, ...]) -> tuple[str, str] | None:
    """Say how a pass may leave unlike layers, where a format has something for all of them, and what to do."""
    size = [key for key in SIZE_TARGETS if key in options["target"]]
    units = [unit for unit in options["unit"] if unit in alike]
    if size and units:
        return f"{size[0]} lets layers keep unlike numbers of {show(units[0])} units", "give counts"
    if form.same_heads and "head" in units and not options["tie_heads"]:
        return "each layer keeps heads of its own", 'add "tie_heads": true'
    counted = [unit for unit in units if unit != "head" or not form.same_heads]
    if options["budget"] == "global" and counted:
        return f'"global" lets layers keep unlike numbers of {show(counted[0])} units', 'write "budget": "per-layer"'
    return None


def _loose(step: Step, form: Format, alike: tuple[str, ...]) -> str:
    """Say what makes a search leave layers that are enough alike for a format; nothing where it does."""
    options, heads = step.options, {"head", "kv_group"}
    if not set(step.units) & set(alike) or (options["uniform"] and not form.same_heads):
        return ""
    if form.same_heads and "head" in step.units:
        return 'leave "head" out of units'
    if set(alike) <= heads:
        return "" if options["same_heads"] else 'write "same_heads": true'
    return "" if options["uniform"] else 'write "uniform": true'
