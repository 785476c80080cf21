"""Tensors that plans name: what is made 2:4 sparse, what is frozen, what adapters stand on.

Which ones are meant, whether their widths part into fours, where such a pass may stand. Needs no torch: names and
shapes follow from the config and the sizes that earlier passes leave.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import reduce
from importlib.util import find_spec
from math import gcd

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import show
from sprunec.families.base_config import ModelConfig, doubled
from sprunec.families.cards import card_of
from sprunec.families.tensor_names import projections, selected
from sprunec.plan.targets import quoted, trimmed
from sprunec.plan.written_plan import Step, WrittenPlan
from sprunec.units import INSIDE, UNITS, WHOLE

GROUP = 4
PEFT, INSTALL = "peft", "pip install 'sprunec[lora]'"
_LEAST_LIKENESS = 0.6
_LAYER = re.compile(r"\.\d+\.")  # the number of a layer in a tensor's name


def targeted(shapes: Mapping[str, Shape], parts: Iterable[str]) -> dict[str, Shape]:
    """Give the two-dimensional tensors whose name contains any of the parts, in the order of `shapes`."""
    wanted = tuple(parts)
    return {n: shape for n, shape in shapes.items() if len(shape) == 2 and any(part in n for part in wanted)}


def checked_axes(pattern: str, *, input_first: bool = False) -> tuple[int, ...]:
    """Give the axes that must part into fours: the input dim, for tiles the output dim too."""
    return (0, 1) if pattern != "m4n2_1d" else (0,) if input_first else (1,)


def uneven(pattern: str, shape: Shape, *, input_first: bool = False) -> int | None:
    """Give the first size that is no multiple of four and would have to be."""
    axes = checked_axes(pattern, input_first=input_first)
    return next((shape[axis] for axis in axes if shape[axis] % GROUP), None)


def sparsify_fits(plan: WrittenPlan) -> None:
    """Check that `sparsify` comes once, after all cuts, and that its tensors are there and part into fours."""
    places = [index for index, step in enumerate(plan.steps) if step.name == "sparsify"]
    for index in places[1:]:
        message, hint = "the weights are made sparse twice", "keep one sparsify, with the tensors of both"
        plan.steps[index].error("sparsify-twice", "pass", message, hint)
    if not places:
        return
    step, before, after = plan.steps[places[0]], plan.steps[: places[0]], plan.steps[places[0] :]
    if later := next((other.name for other in after if other.declared.removes == "units"), None):
        message = f"sparsify comes before {later}, and a cut moves weights out of their groups of four"
        step.error("sparsify-before-cut", "pass", message, f"cut first: put sparsify after the last {later}")
    elif plan.config is not None and step.is_valid:
        _names(step, plan.config)
        _widths(step, plan.config, before)


def _names(step: Step, config: ModelConfig) -> None:
    """Check that every part of a name is in a tensor's; a list that names none at all is an error."""
    shapes, parts = config.tensors(), step.options["tensors"]
    tell = step.warn if (something := targeted(shapes, parts)) else step.error
    if step.written.get("tensors") is None:
        if not something:
            step.error("no-such-tensor", "", "the model has no linears to make sparse")
        return
    for index, part in enumerate(parts):
        if not targeted(shapes, [part]):
            flat = any(part in name for name in shapes)
            what = "names only tensors of one dimension" if flat else "is in no tensor's name"
            names = list(targeted(shapes, [""]))
            otherwise = f"give a part of a name such as {next(filter(_LAYER.search, names), names[0])}"
            hint = _nearest_part("" if flat else part, names) or otherwise
            tell("no-such-tensor", f"tensors/{index}", f"{show(part)} {what}: it makes nothing sparse", hint)


def trained_fits(plan: WrittenPlan) -> None:
    """Check that patterns of tensors name some, that something is left to train, and what may stand beside adapters."""
    sparse = False
    if find_spec(PEFT) is None and (steps := [step for step in plan.valid_steps if step.options.get("adapter")]):
        tell = plan.error if plan.strict else plan.warn
        tell("missing-package", steps[0].option_at("adapter"), f"adapters need the package {PEFT}", INSTALL)
    for step in plan.valid_steps:
        if step.declared.trains and plan.config is not None:
            adapter, freeze, names = step.options["adapter"], step.options["freeze"], plan.config.tensors()
            _name_some(plan, plan.config, step, "freeze", freeze)
            if not adapter and step.declared.removes != "units" and selected(plan.config, freeze) == {*names}:
                message = f"all {len(names)} tensors of the model are frozen: nothing would train"
                plan.error("all-frozen", step.option_at("freeze"), message, "freeze less, or leave the pass out")
            if adapter:
                _name_some(plan, plan.config, step, "adapter/targets", adapter["targets"])
                if sparse:
                    message = "an adapter that is merged fills the zeros of sparsify"
                    hint = 'put sparsify behind this pass, or write "adapter": null in it'
                    plan.error("adapter-fills-zeros", step.option_at("adapter"), message, hint)
                if freeze and (pointer := step.option_at("freeze")) in plan.source.places:
                    plan.unused(pointer, "freeze is not used with an adapter: all weights are frozen")
        sparse = sparse or step.declared.removes == "weights"


def _name_some(plan: WrittenPlan, config: ModelConfig, step: Step, key: str, patterns: Collection[str]) -> None:
    """Check that every pattern names a tensor, and those of an adapter a matrix of a sublayer."""
    find, names = (selected, config.tensors()) if key == "freeze" else (projections, projections(config, [""]))
    option, _, inside = key.partition("/")
    for index, pattern in enumerate(patterns):
        if not find(config, [pattern]):
            pointer = "/".join(part for part in (step.option_at(option), inside, str(index)) if part)
            there = "tensor of the model" if key == "freeze" else "matrix of a sublayer, which adapters stand on"
            wider = f"*{pattern}*"
            hint = f"a pattern is of the whole name: {show(wider)}" if find(config, [wider]) else ""
            hint = hint or _nearest_part(pattern, [*names]) or f"there are {', '.join(_without_layers(names))}"
            plan.error("no-such-tensor", pointer, f"{show(pattern)} names no {there}", hint)


def _nearest_part(part: str, names: Sequence[str]) -> str:
    """Name the parts of names, with as many dots, that are most like this one; nothing where none is like it."""
    count = part.count(".") + 1
    steps = [name.split(".") for name in names]
    runs = {".".join(each[start : start + count]) for each in steps for start in range(len(each) - count + 1)}
    likeness = {run: SequenceMatcher(None, part, run).ratio() for run in runs}
    best = max(likeness.values(), default=0.0)
    if best < _LEAST_LIKENESS:
        return ""
    return f"did you mean {quoted(run for run in sorted(likeness) if likeness[run] == best)}?"


def _without_layers(names: Iterable[str]) -> list[str]:
    """Write `*` for the numbers of layers, and each name once."""
    return list(dict.fromkeys(_LAYER.sub(".*.", name, count=1) for name in names))


def _widths(step: Step, config: ModelConfig, before: Sequence[Step]) -> None:
    """Find widths that are known and no multiple of four; then those that only the run will know."""
    left, chosen = _left(config, before)
    shapes, more = targeted(left.tensors(), step.options["tensors"]), reduce(doubled, chosen, left).tensors()
    pattern, turned = step.options["pattern"], card_of(config).input_first(config)
    axes = {name: checked_axes(pattern, input_first=name.endswith(turned)) for name in shapes}
    bad = {n: axis for n, shape in shapes.items() for axis in axes[n] if shape[axis] % GROUP}
    unknown = [name for name, axis in bad.items() if more[name][axis] != shapes[name][axis]]  # it counts such units
    wrong = [name for name in bad if name not in unknown]
    key = "tensors" if step.written.get("tensors") else ""
    if wrong:
        shape, size = list(shapes[wrong[0]]), shapes[wrong[0]][bad[wrong[0]]]
        message = f"{wrong[0]} is {shape} here, and {size} is not a multiple of {GROUP}{_more(wrong)}"
        # sublayers that an earlier pass takes away whole may be just the uneven ones, unless every layer's is uneven
        drops = any(set(each.units) & set(WHOLE) for each in before)
        odd, there = (Counter(_LAYER.sub(".", name, count=1) for name in names) for names in (wrong, shapes))
        everywhere = any(there[inside] == count for inside, count in odd.items())
        tell = step.warn if drops and not everywhere else step.error
        tell("uneven-width", key, message, f"cut to multiples of {GROUP}, or leave it out of tensors")
    if unknown:
        message = f"the width of {unknown[0]} is not known before the run{_more(unknown)}"
        ways = 'cut with "multiple_of", or to one with "budget": "per-layer"'
        step.warn("unknown-width", key, message, f"the run stops here unless it is a multiple of {GROUP}: {ways}")


def _left(config: ModelConfig, before: Sequence[Step]) -> tuple[ModelConfig, set[str]]:
    """Give the config that sparsify will meet, and the units whose numbers a pass chooses by itself.

    Those count as 1, or as what they are a multiple of. What stays is then a divisor of each width: a width is sure to
    part into fours where that divisor does.
    """
    layers, chosen = list(config.layers), dict[str, int]()
    for step in (each for each in before if not each.is_known or each.declared.removes == "units"):
        options = step.options
        for unit in (unit for unit in INSIDE if unit in (step.units or INSIDE)):
            key = UNITS[unit].target
            multiple = options.get("multiple_of", {}).get(key, 1)
            if options.get("budget") == "per-layer" and key in options["target"]:
                most = options["target"][key]
                layers = trimmed(layers, unit, most, multiple)
                if unit in chosen:
                    chosen[unit] = multiple if multiple > 1 else gcd(chosen[unit], most)
            else:
                chosen[unit] = multiple
    for unit, divisor in chosen.items():
        layers = trimmed(layers, unit, divisor, divisor)
    return config.with_layers(layers), set(chosen)


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
