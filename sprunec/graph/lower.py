"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and a trace and evaluation of the dense model
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
      compensate    -> compensate, between binarize and rewrite
    load-mask     -> load-mask, rewrite, compare
    sparsify      -> sparsify, and the passes that train from there on hold its zeros
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, form by form, evaluations of masked and small

A plan that trains nothing needs no expand, and one comparison, at the end: its weights are the input's throughout.
Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.forms import OWN_FORM, emit_options, formats_of
from sprunec.graph.graph import MISSING, Graph, file_digest
from sprunec.graph.sizes import planned
from sprunec.graph.sources import add_sources, teacher
from sprunec.plan.distillation import WHOLE
from sprunec.plan.draft import LOOKING
from sprunec.plan.forms import EVEN_FORM
from sprunec.plan.plan import PassSpec, Plan
from sprunec.plan.provenance import steps_warning, weights_warning

INSIDE_UNITS = ("head", "dim_head", "dim_ff")
CHANGES_WEIGHTS = ("train", "finetune", "train-mask", "sparsify", "compensate")
SPARSE = ("pattern", "tensors")
TRAINING = (
    "steps",
    "optimizer",
    "betas",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "clip_grad",
    "accumulate",
    "loss_scale",
)


def lower(plan: Plan) -> Graph:
    """The graph of a plan."""
    build = Builder(plan)
    add_sources(build)
    for spec in plan.passes:
        _keep_dense(build, spec)
        LOWERINGS[spec.name](build, spec)
    _finish(build)
    return build.graph()


def _keep_dense(build: Builder, spec: PassSpec) -> None:
    """The model that the first pass that cuts is given is the teacher of the passes from there on."""
    if spec.name not in WHOLE:
        build.latest.setdefault("teacher", build.latest["model"])


def _train(build: Builder, spec: PassSpec) -> None:
    options = _training_options(build, spec)
    inputs = {"model": build.latest["model"], "data": build.latest["data"]} | teacher(build, spec)
    about = f"{spec.options['steps']} steps"
    build.latest["model"] = build.add(
        spec.name, options, inputs, **_steps(spec), about=about, parameters=build.left.parameters
    )
    build.count(spec)


def _train_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options = _training_options(build, spec) | _mask_options(spec)
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
        **_steps(spec),
        about=_target_words(spec, options["target"]),
        parameters=build.left.parameters,
    )
    build.count(spec)
    if spec.options["weights"] == "trained":
        build.latest["model"] = name
    masks = _binarize(build, spec, name)
    _compensate(build, spec, masks, name)
    _cut(build, masks, spec)


def _score_mask(build: Builder, spec: PassSpec) -> None:
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


def _load_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    paths = tuple(spec.options["path"])
    inputs = {"model": build.latest["model"], "source": build.roles["source"]}
    options: dict[str, Any] = {"content": tuple(file_digest(path) for path in paths)}
    options |= {"missing": MISSING} if MISSING in options["content"] else {}
    options |= {"even": True} if EVEN_FORM in formats_of(build.plan) else {}
    names = ", ".join(path.name for path in paths)
    entered = build.source_options().get("checkpoint")
    warnings = [weights_warning(path, entered) for path in paths]
    if any("steps" in each.options for each in build.plan.passes):
        warnings += [steps_warning(path, entered, build.plan.model.start_step) for path in paths]
    notes = tuple(filter(None, warnings))
    masks = build.add("load-mask", options, inputs, files={"paths": paths}, about=names, notes=notes)
    _compensate(build, spec, masks)
    _cut(build, masks, None)


def _sparsify(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options: dict[str, Any] = {key: spec.options[key] for key in SPARSE}
    files = {"path": spec.options["path"]} if "path" in spec.options else {}
    for path in files.get("path", ()):
        options["content"] = file_digest(path)
    writes = {"mask": spec.options["save_mask"]} if "save_mask" in spec.options else {}
    about = ", ".join((spec.options["pattern"], *(path.name for path in files.get("path", ()))))
    inputs, parameters = {"model": build.latest["model"]}, build.left.parameters
    extra = {"parameters": parameters, "writes": writes, "provenance": _provenance(build, options, SPARSE)}
    build.latest["model"] = build.latest["sparse"] = build.add(
        "sparsify", options, inputs, files=files, about=about, **extra
    )


def _emit(build: Builder, spec: PassSpec) -> None:
    build.formats, build.dtype = tuple(spec.options["formats"]), spec.options["dtype"]


def _finish(build: Builder) -> None:
    build.evaluate_dense()
    final = build.latest["model"]
    build.roles["final"] = final
    masked = final
    if "origin" in build.latest:
        build.roles["origin"] = build.latest["origin"]
        masked = _full_shape(build, final)
    build.roles["full"] = masked
    small = _emitted(build, final) if build.formats else final
    if masked != small:
        inputs = {"masked": masked, "masks": final, "small": small}
        build.add("compare", build.look(), inputs | build.data_inputs(), about="masked = small")
    build.evaluate_pruned(masked, final, small)


def _full_shape(build: Builder, final: str) -> str:
    """The node of the final weights in the input's shape: the input itself, where nothing has been trained."""
    source = build.roles["source"]
    if all(node.pass_ not in CHANGES_WEIGHTS for node in build.nodes):
        return source
    inputs = {"model": final, "source": source, "origin": build.latest["origin"]}
    return build.add("expand", {}, inputs, about="back in the input's shape")


def _emitted(build: Builder, final: str) -> str:
    """The forms -> which node gives the small model that is compared and measured: our own form where there is one."""
    inputs = {"model": final, "source": build.roles["source"]}
    options, files = emit_options(build.plan, build.formats, build.dtype)
    name = build.add(
        "emit", options, inputs, about=", ".join(build.formats), parameters=build.left.parameters, files=files
    )
    build.roles["emitted"] = name
    for form in (each for each in build.formats if each != OWN_FORM):
        inputs = {"model": final, "emitted": name}
        build.add(
            "compare-format",
            build.look() | {"form": form},
            inputs | build.data_inputs(),
            suffix=form,
            about="opened again",
        )
    return name if OWN_FORM in build.formats else final


def _training_options(build: Builder, spec: PassSpec) -> dict[str, Any]:
    options = {key: spec.options[key] for key in TRAINING}
    distillation = spec.options["distillation"]
    if distillation is not None:
        options["distillation"] = {key: value for key, value in distillation.items() if key != "teacher"}
    return options | build.look() | {"precision": build.plan.engine.precision, "first_step": build.model_steps}


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


def _provenance(
    build: Builder, options: Mapping[str, Any], names: tuple[str, str] = ("unit", "target")
) -> dict[str, Any]:
    """What is noted beside a mask that has been chosen here; `names` are the options that say what and how much."""
    about = {key: options[name] for key, name in zip(("unit", "target"), names, strict=True)}
    about |= {"checkpoint": build.source_options().get("checkpoint")}
    return about | {"start_step": build.plan.model.start_step, "steps": build.model_steps}


def _cut(build: Builder, masks: str, spec: PassSpec | None) -> None:
    entering = build.latest["model"]
    if spec is not None:
        build.left = planned(build.left, spec.options["unit"], spec.options["target"])
    inputs = {"model": entering, "masks": masks}
    inputs |= {"origin": build.latest["origin"]} if "origin" in build.latest else {}
    small = build.add("rewrite", {}, inputs, about="slices only", parameters=build.left.parameters)
    if _changes_weights(build.plan):  # else the comparison at the end says it all
        inputs = {"masked": entering, "masks": masks, "small": small}
        build.add("compare", build.look(), inputs | build.data_inputs(), about="masked = small")
    build.latest |= {"model": small, "origin": small}


def _changes_weights(plan: Plan) -> bool:
    return any(spec.name in CHANGES_WEIGHTS or spec.options.get("compensate") is not None for spec in plan.passes)


def _steps(spec: PassSpec) -> dict[str, Any]:
    return {"steps": spec.options["steps"], "checkpoint_every": spec.options["checkpoint_every"]}


def _mask_options(spec: PassSpec) -> dict[str, Any]:
    return {key: spec.options[key] for key in ("unit", "target", "budget", "tie_heads")}


def _target_words(spec: PassSpec, target: Mapping[str, Any] | None = None) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in (target or spec.options["target"]).items())
    words += "".join(f", {name} in multiples of {count}" for name, count in spec.options["multiple_of"].items())
    return f"{words} ({'the same in all layers' if spec.options['tie_heads'] else spec.options['budget']})"


LOWERINGS = {
    "train": _train,
    "finetune": _train,
    "train-mask": _train_mask,
    "score-mask": _score_mask,
    "load-mask": _load_mask,
    "sparsify": _sparsify,
    "emit": _emit,
}
