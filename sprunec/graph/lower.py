"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and a trace and evaluation of the dense model
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
    load-mask     -> load-mask, rewrite, compare
    sparsify      -> sparsify, and the passes that train from there on hold its zeros
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, evaluations of masked and small

Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.graph import MISSING, Graph, file_digest
from sprunec.graph.sizes import planned
from sprunec.graph.sources import add_sources, teacher
from sprunec.masks.provenance import weights_warning
from sprunec.plan.distillation import WHOLE
from sprunec.plan.plan import PassSpec, Plan

TRAINING = [
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
]


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
    options |= {key: spec.options[key] for key in ("mask_learning_rate", "ramp")}
    inputs = {"model": build.latest["model"], "data": build.latest["data"]} | teacher(build, spec)
    suffix = "-".join(spec.options["unit"])
    name = build.add(
        "train-mask",
        options,
        inputs,
        suffix=suffix,
        **_steps(spec),
        about=_target_words(spec),
        parameters=build.left.parameters,
    )
    build.count(spec)
    build.latest["model"] = name
    _cut(build, _binarize(build, spec, name), spec)


def _score_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options = _mask_options(spec) | {"criterion": spec.options["criterion"]} | build.look()
    inputs = {"model": build.latest["model"]}
    if spec.options["criterion"] == "taylor":
        options |= {"batches": spec.options["batches"], "first_step": build.model_steps}
        options |= {"precision": build.plan.engine.precision}
        inputs |= build.data_inputs()
    suffix = "-".join(spec.options["unit"])
    about = f"{spec.options['criterion']}: {_target_words(spec)}"
    name = build.add("score-mask", options, inputs, suffix=suffix, about=about)
    _cut(build, _binarize(build, spec, name), spec)


def _load_mask(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    paths = tuple(spec.options["path"])
    inputs = {"model": build.latest["model"], "source": build.roles["source"]}
    options: dict[str, Any] = {"content": tuple(file_digest(path) for path in paths)}
    options |= {"missing": MISSING} if MISSING in options["content"] else {}
    names = ", ".join(path.name for path in paths)
    entered = build.source_options().get("checkpoint")
    warnings = tuple(filter(None, (weights_warning(path, entered) for path in paths)))
    _cut(build, build.add("load-mask", options, inputs, files={"paths": paths}, about=names, notes=warnings), None)


def _sparsify(build: Builder, spec: PassSpec) -> None:
    build.evaluate_dense()
    options: dict[str, Any] = {key: spec.options[key] for key in ("pattern", "tensors")}
    files = {"path": spec.options["path"]} if "path" in spec.options else {}
    for path in files.get("path", ()):
        options["content"] = file_digest(path)
    writes = {"mask": spec.options["save_mask"]} if "save_mask" in spec.options else {}
    about = ", ".join((spec.options["pattern"], *(path.name for path in files.get("path", ()))))
    inputs, parameters = {"model": build.latest["model"]}, build.left.parameters
    build.latest["model"] = build.latest["sparse"] = build.add(
        "sparsify", options, inputs, files=files, about=about, parameters=parameters, writes=writes
    )


def _emit(build: Builder, spec: PassSpec) -> None:
    build.formats = tuple(spec.options["formats"])


def _finish(build: Builder) -> None:
    build.evaluate_dense()
    final = build.latest["model"]
    build.roles["final"] = final
    masked = final
    if "origin" in build.latest:
        build.roles["origin"] = build.latest["origin"]
        inputs = {"model": final, "source": build.roles["source"], "origin": build.latest["origin"]}
        masked = build.add("expand", {}, inputs, about="back in the input's shape")
    build.roles["full"] = masked
    small = final
    if build.formats:
        inputs = {"model": final, "source": build.roles["source"]}
        small = build.add(
            "emit",
            {"formats": build.formats},
            inputs,
            about=", ".join(build.formats),
            parameters=build.left.parameters,
        )
        build.roles["emitted"] = small
    if masked != small:
        inputs = {"masked": masked, "masks": final, "small": small}
        build.add("compare", build.look(), inputs | build.data_inputs(), about="masked = small")
    build.evaluate_pruned(masked, final, small)


def _training_options(build: Builder, spec: PassSpec) -> dict[str, Any]:
    options = {key: spec.options[key] for key in TRAINING}
    distillation = spec.options["distillation"]
    if distillation is not None:
        options["distillation"] = {key: value for key, value in distillation.items() if key != "teacher"}
    return options | build.look() | {"precision": build.plan.engine.precision, "first_step": build.model_steps}


def _binarize(build: Builder, spec: PassSpec, scores: str) -> str:
    inputs = {"model": build.latest["model"], "scores": scores}
    options, writes = _mask_options(spec), {}
    if "save_mask" in spec.options:
        writes[spec.options["mask_form"]] = spec.options["save_mask"]
    about = _target_words(spec)
    return build.add("binarize", options, inputs, about=about, writes=writes, provenance=_provenance(build, options))


def _provenance(build: Builder, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted beside a mask that has been chosen here."""
    about = {key: options[key] for key in ("unit", "target")}
    about |= {"checkpoint": build.source_options().get("checkpoint")}
    return about | {"start_step": build.plan.model.start_step, "steps": build.model_steps}


def _cut(build: Builder, masks: str, spec: PassSpec | None) -> None:
    entering = build.latest["model"]
    if spec is not None:
        build.left = planned(build.left, spec.options["unit"], spec.options["target"])
    inputs = {"model": entering, "masks": masks}
    inputs |= {"origin": build.latest["origin"]} if "origin" in build.latest else {}
    small = build.add("rewrite", {}, inputs, about="slices only", parameters=build.left.parameters)
    inputs = {"masked": entering, "masks": masks, "small": small}
    build.add("compare", build.look(), inputs | build.data_inputs(), about="masked = small")
    build.latest |= {"model": small, "origin": small}


def _steps(spec: PassSpec) -> dict[str, Any]:
    return {"steps": spec.options["steps"], "checkpoint_every": spec.options["checkpoint_every"]}


def _mask_options(spec: PassSpec) -> dict[str, Any]:
    return {key: spec.options[key] for key in ("unit", "target", "budget")}


def _target_words(spec: PassSpec) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in spec.options["target"].items())
    return f"{words} ({spec.options['budget']})"


LOWERINGS = {
    "train": _train,
    "finetune": _train,
    "train-mask": _train_mask,
    "score-mask": _score_mask,
    "load-mask": _load_mask,
    "sparsify": _sparsify,
    "emit": _emit,
}
