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

from sprunec.compiler.sources import add_sources, with_own_head
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Graph
from sprunec.passes import compare, compare_format, emit, expand
from sprunec.plan.declared import PASSES
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import PassSpec, Plan


def lower(plan: Plan) -> Graph:
    """Make the graph of a plan.

    Raises:
        InputError: see `with_own_head`; or an index of a checkpoint is none.
    """
    build = Builder(with_own_head(plan))
    add_sources(build)
    for spec in plan.passes:
        info = PASSES[spec.name]
        assert info.lower is not None
        if info.removes:  # what comes in here is what the result is compared with, and the teacher from here on
            build.evaluate_dense()
            build.teachers.setdefault(None, build.model)
        info.lower(build, spec)
    _finish(build)
    return build.graph()


def _finish(build: Builder) -> None:
    build.evaluate_dense()
    final = masked = build.roles.final = build.model
    if build.roles.origin:
        masked = expand.add(build, final) if build.changes_weights() else build.roles.source
    build.roles.full = masked
    small = _emitted(build, build.emitting, final) if build.emitting is not None else final
    if masked != small:
        compare.add(build, masked, final, small)
    build.evaluate_pruned(masked, final, small)


def _emitted(build: Builder, spec: PassSpec, final: str) -> str:
    """Add all formats -> which node gives the small model that is compared and measured: our own where there is one."""
    build.roles.emitted = emit.add(build, spec, final)
    formats = spec.options["formats"]
    reopened = [name for name in formats if FORMATS[name].reopen is not None]
    for name in reopened:
        compare_format.add(build, final, build.roles.emitted, name)
    return final if len(reopened) == len(formats) else build.roles.emitted
