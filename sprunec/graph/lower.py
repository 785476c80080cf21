"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and a trace and evaluation of the dense model
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

from sprunec.graph.builder import Builder
from sprunec.graph.cuts import CHANGES_WEIGHTS, load_mask, score_mask, sparsify, train_mask
from sprunec.graph.emit_options import emit_options
from sprunec.graph.graph import Graph
from sprunec.graph.heads import with_own_head
from sprunec.graph.sources import add_sources
from sprunec.graph.training_nodes import train
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import PassSpec, Plan
from sprunec.plan.training_checks import WHOLE


def lower(plan: Plan) -> Graph:
    """The graph of a plan.

    Raises:
        InputError: see `with_own_head`; or an index of a checkpoint is none.
    """
    build = Builder(with_own_head(plan))
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
        build.add("compare", build.compared(), inputs | build.data_inputs(), about="masked = small")
    build.evaluate_pruned(masked, final, small)
    build.measure_speed(final)


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
    own = [form for form in build.formats if FORMATS[form].reopen is None]
    for form in (each for each in build.formats if each not in own):
        inputs = {"model": final, "emitted": name}
        build.add(
            "compare-format",
            build.compared() | {"form": form},
            inputs | build.data_inputs(),
            suffix=form,
            about="opened again",
        )
    return name if own else final


LOWERINGS = {
    "train": train,
    "finetune": train,
    "train-mask": train_mask,
    "score-mask": score_mask,
    "load-mask": load_mask,
    "sparsify": sparsify,
    "emit": _emit,
}
