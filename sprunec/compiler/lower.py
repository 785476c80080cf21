"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and an evaluation of the dense model
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
    load-mask     -> load-mask, rewrite, compare
      compensate    -> compensate, before rewrite, of each of these
    sparsify      -> sparsify, and the passes that train from there on hold its zeros
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, form by form, evaluations of masked and small, speeds

A plan that trains nothing needs no expand, and one comparison, at the end: its weights are the input's throughout.
Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from sprunec.errors import Diagnostic, InputError
from sprunec.families.head import has_own_head
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Graph
from sprunec.passes import compare, compare_format, emit, evaluate, expand, load, measure_speed, read_data
from sprunec.plan.declared import PASSES, PassSpec
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import Plan


def lower(plan: Plan) -> Graph:
    """Make the graph of a plan.

    Raises:
        InputError: see `with_own_head`; or an index of a checkpoint is none.
    """
    build = Builder(with_own_head(plan))
    if plan.data is not None:
        build.data = read_data.add(build)
    build.model = build.roles.source = load.add(build)
    for spec in plan.passes:
        info = PASSES[spec.name]
        assert info.lower is not None
        if info.removes:  # what comes in here is what the result is compared with, and the teacher from here on
            _evaluate_dense(build)
            build.teachers.setdefault(None, build.model)
        info.lower(build, spec)
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


def _finish(build: Builder) -> None:
    _evaluate_dense(build)
    final = masked = build.roles.final = build.model
    if build.roles.origin:
        masked = expand.add(build, final) if build.changes_weights() else build.roles.source
    build.roles.full = masked
    small = _emitted(build, build.emitting, final) if build.emitting is not None else final
    if masked != small:
        compare.add(build, masked, final, small)
    _evaluate_pruned(build, masked, final, small)


def _evaluate_dense(build: Builder) -> None:
    if not build.roles.dense and build.evaluates():
        build.roles.dense = evaluate.add(build, "dense", build.model)


def _evaluate_pruned(build: Builder, masked: str, masks: str, small: str) -> None:
    """Measure what is left beside the dense model, and all speeds together."""
    if not build.evaluates():
        return
    if build.roles.origin:
        build.roles.masked = evaluate.add(build, "masked", masked, masks)
    if build.roles.origin or any(PASSES[node.pass_].removes == "weights" for node in build.nodes.values()):
        build.roles.small = evaluate.add(build, "small", small)
    measured = {role: name for role, name in build.roles.models().items() if name}
    measure_speed.add(build, {role: build.nodes[name].inputs["model"] for role, name in measured.items()}, masks)


def _emitted(build: Builder, spec: PassSpec, final: str) -> str:
    """Add all formats -> which node gives the small model that is compared and measured: our own where there is one."""
    build.roles.emitted = emit.add(build, spec, final)
    formats = spec.options["formats"]
    reopened = [name for name in formats if FORMATS[name].reopen is not None]
    for name in reopened:
        compare_format.add(build, final, build.roles.emitted, name)
    return final if len(reopened) == len(formats) else build.roles.emitted
