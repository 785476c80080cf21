"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and an evaluation of the dense model; verify-trace, where its code is a library's
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
    load-mask     -> load-mask, rewrite, compare
      compensate    -> compensate, before rewrite, of each of these
    sparsify      -> sparsify, and the passes that train from there on hold its zeros
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, form by form, evaluations of masked and small, speeds
    evaluate      -> evaluate-tasks, of dense and small, each behind an emit where no directory is there for it

A plan that trains nothing needs no expand, and one comparison, at the end: its weights are the input's throughout.
Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sprunec.errors import Diagnostic, InputError
from sprunec.families.head import has_own_head
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Graph
from sprunec.passes import compare, emit, expand, load, read_data
from sprunec.passes.measuring import compare_format, evaluate, evaluate_tasks, measure_speed, verify_trace
from sprunec.plan.declared import PASSES
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import Plan


def lower(plan: Plan, most_read: float = math.inf) -> Graph:
    """Make the graph of a plan.

    Args:
        most_read: of a checkpoint of more bytes nothing but the headers is read; its nodes have no digests then.

    Raises:
        InputError: see `with_own_head`; or an index of a checkpoint is none.
    """
    build = Builder(with_own_head(plan), most_read)
    if plan.data is not None:
        build.data = read_data.add(build)
    build.model = build.roles.source = load.add(build)
    verify_trace.add(build, build.model)
    for spec in plan.passes:
        info, build.step = PASSES[spec.name], spec.pointer
        assert info.lower is not None
        if info.removes:  # what comes in here is what the result is compared with, and the teacher from here on
            _evaluate_dense(build)
            build.teachers.setdefault(None, build.model)
        info.lower(build, spec)
    build.step = ""
    _finish(build)
    return build.graph()


def with_own_head(plan: Plan) -> Plan:
    """Set the model's head apart from the embedding where the config or the checkpoint has it so.

    Raises:
        InputError: the plan ends in a format that cannot hold such a head.
    """
    model = plan.model
    if model.config.tie_word_embeddings and model.checkpoint and has_own_head(model.config, model.checkpoint):
        plan = replace(plan, model=replace(model, config=model.config.with_head(own=True)))
        for spec in (spec for spec in plan.passes if spec.name == "emit"):
            for form in (FORMATS[name] for name in spec.options["formats"]):
                for code, why, hint in form.obstacles(plan.model.config):
                    message = f"the format {form.name} can't hold {model.checkpoint}: {why}"
                    file, pointer = str(plan.file or plan.name), f"{spec.pointer}/formats"
                    raise InputError(Diagnostic(code, message, hint, file=file, pointer=pointer))
    return plan


def _evaluate_dense(build: Builder) -> None:
    if "dense" not in build.roles.models and build.evaluates():
        build.roles.models["dense"] = evaluate.add(build, "dense", build.model)


def _finish(build: Builder) -> None:
    """Emit what the passes have left, compare it, measure it beside the dense model, and all speeds together."""
    _evaluate_dense(build)
    roles, emitting = build.roles, build.emitting
    final = masked = small = roles.final = build.model
    if roles.origin:
        masked = expand.add(build, final) if build.changes_weights() else roles.source
    roles.full = masked
    if emitting is not None:
        build.step = emitting.pointer
        roles.emitted = emit.add(build, emitting, final)
        reopened = [name for name in emitting.options["formats"] if FORMATS[name].reopen is not None]
        for name in reopened:
            compare_format.add(build, final, roles.emitted, name)
        build.step = ""
        # What is compared with the masked one and measured is our own format, where that is emitted.
        small = final if len(reopened) == len(emitting.options["formats"]) else roles.emitted
    if masked != small:
        compare.add(build, masked, final, small)
    is_small = roles.origin != "" or any(PASSES[node.pass_].removes == "weights" for node in build.nodes.values())
    if build.evaluates():
        if roles.origin:
            roles.models["masked"] = evaluate.add(build, "masked", masked, final)
        if is_small:
            roles.models["small"] = evaluate.add(build, "small", small)
        models = {role: build.nodes[name].inputs["model"] for role, name in roles.models.items()}
        measure_speed.add(build, models, final)
    for spec in build.evaluating:
        evaluate_tasks.add(build, spec, "dense", build.teachers.get(None, build.model))
        if is_small:
            evaluate_tasks.add(build, spec, "small", final)
