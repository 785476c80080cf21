"""2:4 sparsity at plan time: which tensors are meant, whether their widths part into fours, where the pass may stand.

Needs no torch: names and shapes follow from the config and the sizes that earlier passes leave.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from math import gcd

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import Diagnostic, show
from sprunec.families.base_config import LayerShape, ModelConfig, doubled
from sprunec.plan.resolve import Draft, Step
from sprunec.units import INSIDE, UNITS, WHOLE

GROUP = 4
_LEAST_LIKENESS = 0.6
_LAYER = re.compile(r"\.\d+\.")  # the number of a layer in a tensor's name


def targeted(shapes: Mapping[str, Shape], parts: Iterable[str]) -> dict[str, Shape]:
    """Give the two-dimensional tensors whose name contains any of the parts, in the order of `shapes`."""
    wanted = tuple(parts)
    return {n: shape for n, shape in shapes.items() if len(shape) == 2 and any(part in n for part in wanted)}


def checked_axes(pattern: str) -> tuple[int, ...]:
    """The axes that must part into fours: the input dim, for tiles the output dim too."""
    return (1,) if pattern == "m4n2_1d" else (0, 1)


def uneven(pattern: str, shape: Shape) -> int | None:
    """The first size that is no multiple of four and would have to be."""
    return next((shape[axis] for axis in checked_axes(pattern) if shape[axis] % GROUP), None)


def sparse_findings(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Everything about `sparsify`: it comes once, after all cuts, and its tensors are there and part into fours."""
    places = [index for index, step in enumerate(draft.steps) if step.name == "sparsify"]
    for index in places[1:]:
        message, hint = "the weights are made sparse twice", "keep one sparsify, with the tensors of both"
        yield draft.source.find("sparsify-twice", f"{draft.steps[index].pointer}/pass", message, hint)
    if not places:
        return
    step = draft.steps[places[0]]
    later = next((other.name for other in draft.steps[places[0] :] if other.declared.removes == "units"), None)
    if later is not None:
        message = f"sparsify comes before {later}, and a cut moves weights out of their groups of four"
        hint = f"cut first: put sparsify after the last {later}"
        yield draft.source.find("sparsify-before-cut", f"{step.pointer}/pass", message, hint)
    elif config is not None and step.options is not None:
        yield from _names(draft, step, config)
        yield from _widths(draft, step, config, draft.steps[: places[0]])


def _names(draft: Draft, step: Step, config: ModelConfig) -> Iterator[Diagnostic]:
    """Every part of a name is in a tensor's; a list that names none at all is an error."""
    shapes, parts = config.tensors(), (step.options or {})["tensors"]
    something = bool(targeted(shapes, parts))
    if "tensors" not in step.given:
        if not something:
            yield draft.source.find("no-such-tensor", step.pointer, "the model has no linears to make sparse")
        return
    for index, part in enumerate(parts):
        if targeted(shapes, [part]):
            continue
        flat = any(part in name for name in shapes)
        what = "names only tensors of one dimension" if flat else "is in no tensor's name"
        tell = draft.source.warn if something else draft.source.find
        message = f"{show(part)} {what}: it makes nothing sparse"
        hint = _instead("" if flat else part, list(targeted(shapes, [""])))
        yield tell("no-such-tensor", f"{step.pointer}/tensors/{index}", message, hint)


def _instead(part: str, names: Sequence[str]) -> str:
    """The parts of names, with as many dots, that are most like this one."""
    count = part.count(".") + 1
    steps = [name.split(".") for name in names]
    runs = {".".join(each[start : start + count]) for each in steps for start in range(len(each) - count + 1)}
    likeness = {run: SequenceMatcher(None, part, run).ratio() for run in runs}
    best = max(likeness.values(), default=0.0)
    if best < _LEAST_LIKENESS:
        return f"give a part of a name such as {next(filter(_LAYER.search, names), names[0])}"
    return f"did you mean {' and '.join(show(run) for run in sorted(likeness) if likeness[run] == best)}?"


def _widths(draft: Draft, step: Step, config: ModelConfig, before: Sequence[Step]) -> Iterator[Diagnostic]:
    """Widths that are known and no multiple of four; then those that only the run will know."""
    options = step.options or {}
    left, chosen = _left(config, before)
    shapes, units = targeted(left.tensors(), options["tensors"]), _units_by_axis(left)
    bad = {n: axis for n, shape in shapes.items() for axis in checked_axes(options["pattern"]) if shape[axis] % GROUP}
    unknown = [name for name, axis in bad.items() if units[name, axis] & chosen]
    wrong = [name for name in bad if name not in unknown]
    pointer = f"{step.pointer}/tensors" if "tensors" in step.given else step.pointer
    if wrong:
        shape, size = list(shapes[wrong[0]]), shapes[wrong[0]][bad[wrong[0]]]
        message = f"{wrong[0]} is {shape} here, and {size} is not a multiple of {GROUP}{_more(wrong)}"
        # sublayers that an earlier pass takes away whole may be just the uneven ones, unless every layer's is uneven
        drops = any(set((each.options or {}).get("unit", ())) & set(WHOLE) for each in before)
        tell = draft.source.warn if drops and not _in_every_layer(wrong, shapes) else draft.source.find
        yield tell("uneven-width", pointer, message, f"cut to multiples of {GROUP}, or leave it out of tensors")
    if unknown:
        message = f"the width of {unknown[0]} is not known before the run{_more(unknown)}"
        ways = 'cut with "multiple_of", or to one with "budget": "per-layer"'
        hint = f"the run stops here unless it is a multiple of {GROUP}: {ways}"
        yield draft.source.warn("unknown-width", pointer, message, hint)


def _left(config: ModelConfig, before: Sequence[Step]) -> tuple[ModelConfig, set[str]]:
    """The config that sparsify will meet, and the units whose numbers a pass chooses by itself: those count as 1,
    or as what they are a multiple of.

    What stays is then a divisor of each width: a width is sure to part into fours where that divisor does.
    """
    layers, chosen = list(config.layers), dict[str, int]()
    for step in (each for each in before if not each.name or each.declared.removes == "units"):
        options = step.options or {}
        for unit in INSIDE:
            if unit not in options.get("unit", INSIDE):
                continue
            key = UNITS[unit].target
            multiple = options.get("multiple_of", {}).get(key, 1)
            if options.get("budget") == "per-layer" and key in options["target"]:
                most = options["target"][key]
                layers = _resized(layers, unit, multiple, most)
                if unit in chosen:
                    chosen[unit] = multiple if multiple > 1 else gcd(chosen[unit], most)
            else:
                chosen[unit] = multiple
    for unit, divisor in chosen.items():
        layers = _resized(layers, unit, divisor, divisor)
    return config.with_layers(layers), set(chosen)


def _resized(layers: Sequence[LayerShape], unit: str, multiple: int, most: int) -> list[LayerShape]:
    """Layers with at most so many units of one kind, in multiples; attention without a head or a dim is none."""
    sizes = (min(layer.counts.get(unit, 0), most) // multiple * multiple for layer in layers)
    return [layer.resized({unit: left}) for layer, left in zip(layers, sizes, strict=True)]


def _units_by_axis(config: ModelConfig) -> Mapping[tuple[str, int], set[str]]:
    """The units whose number decides the size of a tensor's axis: it grows when a layer has twice as many."""
    shapes, found = config.tensors(), defaultdict[tuple[str, int], set[str]](set)
    for unit in INSIDE:
        for name, wide in doubled(config, unit).tensors().items():
            for axis, (narrow, wider) in enumerate(zip(shapes[name], wide, strict=True)):
                if narrow != wider:
                    found[name, axis].add(unit)
    return found


def _in_every_layer(wrong: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    """Whether one of the wrong tensors is wrong in every layer."""
    counts = Counter(_LAYER.sub(".", name, count=1) for name in shapes)
    return any(counts[inside] == count for inside, count in Counter(_LAYER.sub(".", n, count=1) for n in wrong).items())


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
