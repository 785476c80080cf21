"""Lower the passes that take something away: a mask is learned, scored or read, made exact, and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.graph import MISSING
from sprunec.graph.planned import planned
from sprunec.graph.sources import teacher
from sprunec.graph.training_nodes import steps_of, training_options
from sprunec.graph.weights import NO_MASK, weights_digest
from sprunec.plan.export_formats import formats_of
from sprunec.plan.plan import PassSpec, Plan
from sprunec.plan.resolve import LOOKING
from sprunec.plan.weights_notes import steps_warning, weights_warning

CHANGES_WEIGHTS = ("train", "finetune", "train-mask", "sparsify", "compensate")
INSIDE_UNITS = ("head", "dim_head", "dim_ff")
SPARSE = ("pattern", "tensors")


def train_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options = training_options(build, spec) | _mask_options(spec)
    options |= {key: spec.options[key] for key in ("criterion", "batches", "mask_learning_rate", "ramp")}
    options |= {"stop_when_settled": True} if spec.options["stop_when_settled"] else {}
    options["target"] = spec.options.get("gates_for", spec.options["target"])
    inputs = {"model": build.latest["model"], "data": build.latest["data"]} | teacher(build, spec)
    suffix = "-".join(spec.options["unit"])
    name = build.add(
        "train-mask",
        options,
        inputs,
        suffix=suffix,
        **steps_of(spec),
        about=_target_words(spec, options["target"]),
        parameters=build.left.parameters,
    )
    build.count(spec)
    if spec.options["weights"] == "trained":
        build.latest["model"] = name
    masks = _binarize(build, spec, name)
    _compensate(build, spec, masks, name)
    _cut(build, masks, spec)


def score_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options = _mask_options(spec) | {"criterion": spec.options["criterion"]} | build.look()
    inputs = {"model": build.latest["model"]}
    if spec.options["criterion"] in LOOKING:
        options |= _look_options(build, spec)
        inputs |= build.data_inputs()
    suffix = "-".join(spec.options["unit"])
    about = f"{spec.options['criterion']}: {_target_words(spec)}"
    name = build.add("score-mask", options, inputs, suffix=suffix, about=about)
    masks = _binarize(build, spec, name)
    _compensate(build, spec, masks)
    _cut(build, masks, spec)


def load_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    paths = tuple(spec.options["path"])
    inputs = {"model": build.latest["model"], "source": build.roles["source"]}
    options: dict[str, Any] = {"content": tuple(weights_digest(path, NO_MASK) for path in paths)}
    options |= {"missing": MISSING} if MISSING in options["content"] else {}
    options |= {"even": True} if any(form.uniform for form in formats_of(build.plan)) else {}
    names = ", ".join(path.name for path in paths)
    entered = build.source_options().get("checkpoint")
    warnings = [weights_warning(path, entered) for path in paths]
    if any("steps" in each.options for each in build.plan.passes):
        warnings += [steps_warning(path, entered, build.plan.model.start_step) for path in paths]
    notes = tuple(filter(None, warnings))
    masks = build.add("load-mask", options, inputs, files={"paths": paths}, about=names, notes=notes)
    _compensate(build, spec, masks)
    _cut(build, masks, None)


def _binarize(build: Builder, spec: PassSpec, scores: str) -> str:
    inputs = {"model": build.latest["model"], "scores": scores}
    options, writes = _mask_options(spec), {}
    options |= {"multiple_of": spec.options["multiple_of"]} if spec.options["multiple_of"] else {}
    notes: tuple[str, ...] = ()
    if "gates_for" in spec.options:
        options["learned"] = True
        notes = (f"cut to another target by the gates learned for {_target_words(spec, spec.options['gates_for'])}",)
    if "save_mask" in spec.options:
        writes[spec.options["mask_form"]] = spec.options["save_mask"]
    about, provenance = _target_words(spec), _provenance(build, options)
    return build.add("binarize", options, inputs, about=about, writes=writes, provenance=provenance, notes=notes)


def _compensate(build: Builder, spec: PassSpec, masks: str, scores: str | None = None) -> None:
    """Refit the model that the mask is put on; where its weights have learned beside gates, `scores` has those."""
    if spec.options["compensate"] is None:
        return
    learned = scores == build.latest["model"]
    options = {"unit": spec.options.get("unit", INSIDE_UNITS), "learned": learned} | _look_options(build, spec)
    inputs = {"model": build.latest["model"], "masks": masks} | build.data_inputs()
    inputs |= {"scores": scores} if scores is not None and learned else {}
    about, parameters = spec.options["compensate"], build.left.parameters
    build.latest["model"] = build.add("compensate", options | build.look(), inputs, about=about, parameters=parameters)


def _look_options(build: Builder, spec: PassSpec) -> dict[str, Any]:
    options = {"batches": spec.options["batches"], "first_step": build.model_steps}
    return options | {"precision": build.plan.engine.precision}


def _cut(build: Builder, masks: str, spec: PassSpec | None) -> None:
    entering = build.latest["model"]
    if spec is not None:
        build.left = planned(build.left, *(spec.options[key] for key in ("unit", "target", "multiple_of")))
    inputs = {"model": entering, "masks": masks}
    inputs |= {"origin": build.latest["origin"]} if "origin" in build.latest else {}
    small = build.add("rewrite", {}, inputs, about="slices only", parameters=build.left.parameters)
    if _changes_weights(build.plan):  # else the comparison at the end says it all
        inputs = {"masked": entering, "masks": masks, "small": small}
        build.add("compare", build.compared(), inputs | build.data_inputs(), about="masked = small")
    build.latest |= {"model": small, "origin": small}


def _changes_weights(plan: Plan) -> bool:
    return any(spec.name in CHANGES_WEIGHTS or spec.options.get("compensate") is not None for spec in plan.passes)


def sparsify(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options: dict[str, Any] = {key: spec.options[key] for key in SPARSE}
    files = {"path": spec.options["path"]} if "path" in spec.options else {}
    for path in files.get("path", ()):
        options["content"] = weights_digest(path, NO_MASK)
    writes = {"mask": spec.options["save_mask"]} if "save_mask" in spec.options else {}
    about = ", ".join((spec.options["pattern"], *(path.name for path in files.get("path", ()))))
    inputs, parameters = {"model": build.latest["model"]}, build.left.parameters
    extra = {"parameters": parameters, "writes": writes, "provenance": _provenance(build, options, SPARSE)}
    build.latest["model"] = build.latest["sparse"] = build.add(
        "sparsify", options, inputs, files=files, about=about, **extra
    )


def _provenance(
    build: Builder, options: Mapping[str, Any], names: tuple[str, str] = ("unit", "target")
) -> dict[str, Any]:
    """What is noted beside a mask that has been chosen here; `names` are the options that say what and how much."""
    about = {key: options[name] for key, name in zip(("unit", "target"), names, strict=True)}
    about |= {"checkpoint": build.source_options().get("checkpoint")}
    return about | {"start_step": build.plan.model.start_step, "steps": build.model_steps}


def _mask_options(spec: PassSpec) -> dict[str, Any]:
    return {key: spec.options[key] for key in ("unit", "target", "budget", "tie_heads")} | _allocation(spec)


def _allocation(spec: PassSpec) -> dict[str, Any]:
    """Where the start of the gates says how many units each layer keeps, and there is a choice left.

    Of sublayers it says which, so that a pass over them alone would have nothing to learn.
    """
    free = spec.options["budget"] == "global" and not spec.options["tie_heads"]
    free = free and not set(spec.options["unit"]).isdisjoint(INSIDE_UNITS)
    return {"allocation": "scores"} if free and spec.options.get("allocation") == "scores" else {}


def _target_words(spec: PassSpec, target: Mapping[str, Any] | None = None) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in (target or spec.options["target"]).items())
    words += "".join(f", {name} in multiples of {count}" for name, count in spec.options["multiple_of"].items())
    scope = "the same in all layers" if spec.options["tie_heads"] else spec.options["budget"]
    shared = f", by {spec.options['criterion']}" if _allocation(spec) else ""
    return f"{words} ({scope}{shared})"
