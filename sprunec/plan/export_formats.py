"""What an export format declares, the table of all, and what they ask of a plan.

All of it is told before any work: training that ends in a model which the format cannot hold would be in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import Diagnostic, show
from sprunec.families.base_config import ModelConfig
from sprunec.plan.declared import PassSpec
from sprunec.plan.resolve import Draft, Step
from sprunec.registry import Registry
from sprunec.units import INSIDE, SIZE_TARGETS

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
    """

    stored: torch.dtype
    arithmetic: torch.dtype
    logits: Callable[[list[Inputs]], Tensor]
    inputs: Callable[[Inputs], list[Inputs]] = lambda batch: [batch]
    skipped: int = 0


@dataclass(frozen=True)
class Format:
    """One export format; a file in `formats/` has it, whose import brings no torch.

    Attributes:
        write: makes the directory and fills it; raises FormatError where the format cannot hold the model. Returns what
            the report says about it.
        reopen: the directory, by the config and the weights it was made of. None: `compare` opens it as our own.
        package: one that it needs, and how it is installed.
        uniform: all layers have the same widths, and the same heads.
        obstacles: code, reason and remedy of what keeps it from holding a config's model.
        instead: what to emit where it cannot be.
        folds: the weights have factors folded in, and are stored in a dtype of choice.
        options: of a Plan, what decides what it holds besides the weights and the dtype, and the files that go into it.
    """

    name: str
    write: Callable[[Emission, Path], dict[str, Any]]
    reopen: Callable[[Path, ModelConfig, Tensors], Reopened] | None = None
    package: tuple[str, str] | None = None
    uniform: bool = False
    obstacles: Callable[[ModelConfig], Iterator[tuple[str, str, str]]] = lambda config: iter(())
    instead: str = ""
    folds: bool = False
    options: Callable[[Any], Options] = lambda plan: ({}, {})


FORMATS = Registry(Format, "sprunec.formats")


def formats_of(passes: Iterable[PassSpec]) -> tuple[Format, ...]:
    """Give what a plan with these passes ends with."""
    return tuple(FORMATS[name] for spec in passes if spec.name == "emit" for name in spec.options["formats"])


def _emitted(draft: Draft) -> Iterator[tuple[Step, list[Format]]]:
    for step in draft.steps:
        if step.name == "emit" and step.options is not None:
            yield step, [FORMATS[name] for name in step.options["formats"]]


def heads_tied(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Find `tie_heads` where heads are not counted, or layers have not the same ones left."""
    alike = config is None or len(config.head_sets) < 2
    for step in draft.steps:
        options = step.options or {}
        heads = "head" in options.get("unit", ())
        if options.get("tie_heads"):
            yield from _tie(draft, step, options, heads, alike)
        alike = alike and (not heads or bool(options["tie_heads"]))


def _tie(draft: Draft, step: Step, options: Any, heads: bool, alike: bool) -> Iterator[Diagnostic]:
    pointer, size = f"{step.pointer}/tie_heads", [key for key in SIZE_TARGETS if key in options["target"]]
    if not heads:
        units = " and ".join(show(unit) for unit in options["unit"])
        message = f"tie_heads is about heads, and the pass cuts {units}"
        yield draft.source.find("tie-mismatch", pointer, message, 'remove it, or choose unit "head"')
    elif size:
        message = f"tied heads are counted, and {size[0]} leaves their number open"
        yield draft.source.find("tie-mismatch", f"{step.pointer}/target", message, "give num_heads")
    elif not alike:
        message = "the layers don't have the same heads left to be tied"
        hint = "tie them in the first pass that cuts heads, or remove it"
        yield draft.source.find("tie-mismatch", pointer, message, hint)


def formats_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Find what keeps a format from holding the model, or what a pass may leave of it; and options of no use."""
    emitted = list(_emitted(draft))
    for form in dict.fromkeys(form for _, forms in emitted for form in forms):
        for code, why, hint in form.obstacles(config) if config is not None else ():
            message = f"the format {form.name} can't hold this model: {why}"
            yield draft.source.find(code, "/model/config", message, hint)
        for step in draft.steps:
            if form.uniform and step.declared.by_target and step.options is not None:
                yield from _uneven(draft, step, step.options, form)
    for step, _ in emitted:
        if "dtype" in step.given and not any(form.folds for _, forms in emitted for form in forms):
            message = "dtype is not used without a format that folds factors into its weights"
            yield draft.source.warn("unused-option", f"{step.pointer}/dtype", message, "remove it", key=True)


def _uneven(draft: Draft, step: Step, options: Mapping[str, Any], form: Format) -> Iterator[Diagnostic]:
    """Find a pass that may leave unlike layers, where one config must say what all have."""
    size = [key for key in SIZE_TARGETS if key in options["target"]]
    inside = [unit for unit in options["unit"] if unit in INSIDE]
    message, hint = "", ""
    if size and inside:
        message, hint = f"{size[0]} lets layers keep unlike numbers of {show(inside[0])} units", "give counts"
    elif "head" in inside and not options["tie_heads"]:
        message, hint = "each layer keeps heads of its own", 'add "tie_heads": true'
    elif options["budget"] == "global" and set(inside) - {"head"}:
        unit = next(unit for unit in inside if unit != "head")
        message, hint = f'"global" lets layers keep unlike numbers of {show(unit)} units', 'write "budget": "per-layer"'
    if message:
        message = f"{message}, and the format {form.name} has one width for all"
        yield draft.source.find("uneven-layers", step.pointer, message, f"{hint}, or {form.instead}")


def package_findings(draft: Draft, strict: bool) -> Iterator[Diagnostic]:
    """Find packages that a format needs and that are missing: warnings unless `strict`."""
    for step, forms in _emitted(draft):
        for form in forms:
            if form.package is not None and find_spec(form.package[0]) is None:
                message = f"the format {form.name} needs the package {form.package[0]}, which is not installed"
                hint = f"pip install '{form.package[1]}'"
                finding = draft.source.find("missing-package", f"{step.pointer}/formats", message, hint)
                yield finding if strict else replace(finding, severity="warning")
