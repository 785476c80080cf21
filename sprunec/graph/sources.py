"""What enters a plan: its model, its data, and the models that it distils from."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.graph.builder import Builder
from sprunec.graph.graph import MISSING, file_digest
from sprunec.graph.heads import teacher_config
from sprunec.graph.weights import NO_TEACHER, weights_digest
from sprunec.passes.table import PASSES
from sprunec.plan.plan import DataSource, PassSpec

ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read


def add_sources(build: Builder) -> None:
    """The input model and the data, and a look at what can be cut."""
    plan, config = build.plan, build.config
    if plan.data is not None:
        build.latest["data"] = _data_node(build)
    options: dict[str, Any] = {"config": config.to_dict()}
    files: dict[str, tuple[Path, ...]] = {}
    if plan.model.checkpoint is not None:
        options["checkpoint"] = weights_digest(plan.model.checkpoint, plan=plan)
        files |= _checkpoint_files(plan.model.checkpoint)
    else:
        options["seed"] = plan.seed
    about = files["checkpoint"][0].name if files else "a new model"
    name = build.add("load", options, {}, files=files, about=about, parameters=config.parameters())
    build.latest["model"] = build.roles["source"] = name
    if any(PASSES[spec.name].gives in ("gated", "scores", "masks") for spec in plan.passes):
        build.add("trace", {}, {"model": name}, about="what can be cut")


def _data_node(build: Builder) -> str:
    data, config = build.plan.data, build.config
    assert data is not None
    files = _data_files(data)
    options: dict[str, Any] = {
        "source": data.source,
        "tokenizer": file_digest(data.tokenizer) if isinstance(data.tokenizer, Path) else data.tokenizer,
        "held_out": data.held_out,
        "vocab_size": config.vocab_size,
        "content": _content(data.source, files.get("paths", ())),
    }
    if "held_out" in files:
        options["held_out"] = _content(data.source, files["held_out"])
    if data.source in ROWS_FIT:
        options |= {"max_length": data.max_length, "prompt_length": config.prompt_length}
    if data.source == "cpm-live":
        build.data_files = files
        options |= {"prompt_types": config.prompt_types, "segment_types": config.segment_types}
        options |= {key: getattr(data, key) for key in ("block_size", "order", "packed_prompts")}
        options["vocab"] = None if data.vocab is None else file_digest(data.vocab)
    return build.add("data", options, {}, files=files, about=data.source)


def teacher(build: Builder, spec: PassSpec) -> dict[str, str]:
    """The node of a training pass's teacher, by its role; a checkpoint is loaded once for all passes."""
    distillation = spec.options["distillation"]
    if distillation is None:
        return {}
    path = distillation["teacher"]
    if path is None:
        return {"teacher": build.latest["teacher"]}
    known = f"teacher {path}"
    if known not in build.latest:
        config = teacher_config(build.config, path)
        options = {"config": config.to_dict(), "checkpoint": weights_digest(path, NO_TEACHER)}
        files, parameters = _checkpoint_files(path), config.parameters()
        build.latest[known] = build.add(
            "load", options, {}, suffix="teacher", files=files, about=path.name, parameters=parameters
        )
    return {"teacher": build.latest[known]}


def _checkpoint_files(path: Path) -> dict[str, tuple[Path, ...]]:
    """What the user has named, and the files that it stands for, so that a change of any is noticed."""
    files = checkpoint_files(path)
    return {"checkpoint": (path,)} | ({"weights": files} if files != (path,) else {})


def _data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """The user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,) if isinstance(data.held_out, Path) else ()}
    if data.source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        sets = ((role, [set_files(path, data.block_size) for path in paths]) for role, paths in named.items())
        named = {role: tuple(chain.from_iterable(files)) for role, files in sets}
    named["tokenizer"] = (data.tokenizer,) if isinstance(data.tokenizer, Path) else ()
    named["vocab"] = () if data.vocab is None else (data.vocab,)
    return {role: paths for role, paths in named.items() if paths}


def _content(source: str, paths: tuple[Path, ...]) -> Any:
    """What identifies a text: its files' digests, or the interpreter's own documentation's."""
    if source != "python-docs":
        digests = tuple(file_digest(path) for path in paths)
        return MISSING if MISSING in digests else digests
    from pydoc_data import topics

    return file_digest(Path(topics.__file__))
