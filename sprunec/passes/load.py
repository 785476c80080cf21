"""The model that enters the plan: from a checkpoint, or newly initialised.

A checkpoint with our names is not copied: the artifact links to the user's file, whose content the store verifies. Of
Hugging Face's checkpoints the weights are multiplied back by the roots that are part of them there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.gguf_file import Packed, is_gguf
from sprunec.checkpoint.header import item_bytes
from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.errors import InputError, series
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig, everything
from sprunec.families.cards import Part, card_of, read_config
from sprunec.families.head import has_own_head, own_head
from sprunec.families.own_code import code_files
from sprunec.file_digests import file_digest
from sprunec.graph.arithmetic import by_rows, initialised
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.model_size import ModelSize
from sprunec.graph.needs import Needs
from sprunec.graph.options import Options
from sprunec.graph.weights import NO_TEACHER, weights_digest
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.plan.model_config import teacher_config
from sprunec.plan.scale import FLOAT
from sprunec.plan.targets import Left

if TYPE_CHECKING:
    from sprunec.checkpoint.reader import Tensors


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """A config, and the content of a checkpoint or the seed of new weights.

    Attributes:
        code: by name, the content of the files that the model's own classes are in.
    """

    config: Mapping[str, Any]
    checkpoint: str = ""
    code: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


def add(build: Builder) -> str:
    """Add the node of the plan's input model."""
    plan, path = build.plan, build.plan.model.checkpoint
    if path is not None:
        return _add_file(build, path, build.config, weights_digest(path, plan=plan, most_read=build.most_read))
    options, size = LoadOptions(config=build.config.to_dict(), seed=plan.seed), ModelSize(build.left, FLOAT)
    return build.add("load", options, {}, size=size, about="a new model")


def add_teacher(build: Builder, path: Path | None) -> str:
    """Give the node of a training pass's teacher; a checkpoint is loaded once for all passes.

    Args:
        path: its checkpoint, or a directory with a config of its own; None: the model before anything was taken away
            is the teacher.
    """
    if path is not None and path not in build.teachers:
        config = teacher_config(path, build.config)
        own = has_own_head(config, path)
        if own is not None:  # its head is tied or not by its own file
            config = config.with_head(own=own)
        digest, size = weights_digest(path, NO_TEACHER, most_read=build.most_read), config.parameters()
        build.teachers[path] = _add_file(build, path, config, digest, suffix="teacher", parameters=size)
    return build.teachers[path]


def _add_file(build: Builder, path: Path, config: ModelConfig, digest: str, **extra: Any) -> str:
    """Name what the user has, and the files that it stands for, so that a change of any is noticed."""
    weights = checkpoint_files(path)
    files = {"checkpoint": (path,)} | ({"weights": weights} if weights != (path,) else {})
    code = code_files(path)
    files |= {"code": code} if code else {}
    options = LoadOptions(
        config=config.to_dict(), checkpoint=digest, code={file.name: file_digest(file) for file in code}
    )
    size = ModelSize(Left.of(config), item_bytes(path) or card_of(config).item_bytes(config))
    return build.add("load", options, {}, size=size, files=files, about=path.name, **extra)


def needs(build: Builder, node: Node) -> Needs:
    """Count a checkpoint that is read to know it by its content; its file is linked to where it is a model as it is."""
    size = build.sizes[node.name]
    if any(map(is_gguf, node.files.get("checkpoint", ()))):
        return by_rows(size, [size])
    return Needs(reads=size.nbytes) if node.options.checkpoint else initialised(size)


def run(job: Job[LoadOptions]) -> dict[str, Any]:
    from sprunec.families.model_directory import save_model

    config = read_config(job.options.config)
    size = config.parameters()
    if "checkpoint" in job.files:
        return {"parameters": size} | _take(job.files["checkpoint"][0], config, job.out)
    family = family_of(config)
    model = family.build(config)
    family.initialize(model, job.options.seed or 0)
    save_model(job.out, config, everything(config), model.state_dict())
    return {"parameters": size}


def _take(path: Path, config: ModelConfig, out: Path) -> dict[str, Any]:
    """Write the model that a checkpoint holds; note what the user should know about the file."""
    from sprunec.checkpoint.reader import open_tensors
    from sprunec.checkpoint.writer import adopt_weights
    from sprunec.families.fit import check_fit, refuse_unused
    from sprunec.families.model_directory import describe, save_outputs

    tensors = open_tensors(path)
    unused = check_fit(config, tensors, path)
    head = own_head(config, tensors) if config.tie_word_embeddings else None
    if head is not None:  # a plan finds that out by itself, but for files that torch alone can read
        message = f"{head} differs from the embedding, and the config ties the two"
        raise InputError.at(path, message, 'write "tie_word_embeddings": false in the model\'s config')
    if not tensors.is_whole:  # else the plan has been held against the headers, and knows what to ignore
        refuse_unused(unused, path)
    if all(part == Part(name) for name, part in card_of(config).parts(config, tensors).items()):
        describe(out, config, everything(config))
        adopt_weights(path, out)
    else:
        save_outputs(out, config, everything(config), family_of(config).native_outputs(config, tensors))
    notes = _dequantised(path, tensors)
    extra = sorted(card_of(config).native_shapes(config, tensors.shapes()).keys() - config.tensors().keys())
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        notes.append(f"{path.name} has {extra[0]}{more}, which the config doesn't name: ignored")
    return {"notes": notes} if notes else {}


def _dequantised(path: Path, tensors: Tensors) -> list[str]:
    """Say of a GGUF file which of its types have become float32."""
    kinds = Counter(place.packing.name for place in tensors.places.values() if isinstance(place, Packed))
    if not kinds:
        return []
    told = series([f"{kind} ({number} tensors)" for kind, number in kinds.most_common()], "and")
    return [f"{path.name} has its weights as {told}: they are taken as float32"]


LOAD = Pass("load", 2, LoadOptions, (), "model", needs=needs)
