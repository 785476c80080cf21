"""What enters a plan: its model, its data, and the models that it distils from."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.head import has_own_head
from sprunec.file_digests import MISSING, file_digest
from sprunec.graph.weights import NO_TEACHER, weights_digest
from sprunec.passes.load import LoadOptions
from sprunec.passes.read_data import DataOptions
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import DataSource, Plan

if TYPE_CHECKING:
    from sprunec.graph.builder import Builder

ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read


def with_own_head(plan: Plan) -> Plan:
    """Set the model's head apart from the embedding where the config or the checkpoint has it so.

    Raises:
        InputError: the plan ends in a format that cannot hold such a head.
    """
    model = plan.model
    if model.config.tie_word_embeddings and model.checkpoint and has_own_head(model.config, model.checkpoint):
        plan = replace(plan, model=replace(model, config=replace(model.config, tie_word_embeddings=False)))
        for spec in (spec for spec in plan.passes if spec.name == "emit"):
            for form in (FORMATS[name] for name in spec.options["formats"]):
                for code, why, hint in form.obstacles(plan.model.config):
                    message = f"the format {form.name} can't hold {model.checkpoint}: {why}"
                    file, pointer = str(plan.file or plan.name), f"{spec.pointer}/formats"
                    raise InputError(Diagnostic(code, message, hint, file=file, pointer=pointer))
    return plan


def teacher_config(config: ModelConfig, checkpoint: Path) -> ModelConfig:
    """Make the config of a teacher in the plan's shape; its head is tied or not by its own file."""
    own = has_own_head(config, checkpoint)
    return config if own is None else replace(config, tie_word_embeddings=not own)


def add_sources(build: Builder) -> None:
    """Add the input model and the data."""
    plan, config = build.plan, build.config
    if plan.data is not None:
        build.data = _data_node(build)
    options, about = LoadOptions(config=config.to_dict(), seed=plan.seed), "a new model"
    files: dict[str, tuple[Path, ...]] = {}
    if plan.model.checkpoint is not None:
        digest = weights_digest(plan.model.checkpoint, plan=plan)
        options, about = LoadOptions(config=config.to_dict(), checkpoint=digest), plan.model.checkpoint.name
        files = _checkpoint_files(plan.model.checkpoint)
    name = build.add("load", options, {}, files=files, about=about)
    build.model = build.roles.source = name


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
    return build.add("data", DataOptions(**options), {}, files=files, about=data.source)


def add_teacher(build: Builder, path: Path | None) -> str:
    """Give the node of a training pass's teacher; a checkpoint is loaded once for all passes.

    Args:
        path: its checkpoint; None: the model before anything was taken away is the teacher.
    """
    if path is not None and path not in build.teachers:
        config = teacher_config(build.config, path)
        options = LoadOptions(config=config.to_dict(), checkpoint=weights_digest(path, NO_TEACHER))
        files, parameters = _checkpoint_files(path), config.parameters()
        build.teachers[path] = build.add(
            "load", options, {}, suffix="teacher", files=files, about=path.name, parameters=parameters
        )
    return build.teachers[path]


def _checkpoint_files(path: Path) -> dict[str, tuple[Path, ...]]:
    """List what the user has named, and the files that it stands for, so that a change of any is noticed."""
    files = checkpoint_files(path)
    return {"checkpoint": (path,)} | ({"weights": files} if files != (path,) else {})


def _data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """List the user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,) if isinstance(data.held_out, Path) else ()}
    if data.source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        sets = ((role, [set_files(path, data.block_size) for path in paths]) for role, paths in named.items())
        named = {role: tuple(chain.from_iterable(files)) for role, files in sets}
    named["tokenizer"] = (data.tokenizer,) if isinstance(data.tokenizer, Path) else ()
    named["vocab"] = () if data.vocab is None else (data.vocab,)
    return {role: paths for role, paths in named.items() if paths}


def _content(source: str, paths: tuple[Path, ...]) -> Any:
    """Identify a text by its files' digests, or by the interpreter's own documentation's."""
    if source != "python-docs":
        digests = tuple(file_digest(path) for path in paths)
        return MISSING if MISSING in digests else digests
    from pydoc_data import topics

    return file_digest(Path(topics.__file__))
