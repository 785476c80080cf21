"""Files and data of `transformers`' causal language models as the rooms see them that know no family."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.cards import Card, Part, Widths
from sprunec.families.detect import type_family
from sprunec.families.gguf.file_names import HEAD, TABLE, model_shapes, of_file, origins
from sprunec.families.huggingface.model_types import LAYOUTS, UNDIVIDED
from sprunec.families.huggingface.releases import config_findings, installed
from sprunec.families.huggingface.tensor_layouts import Layout
from sprunec.families.huggingface.transformers_config import FAMILY, TransformersConfig

TEXT_PARTS = ("text_config", "llm_config", "language_config")  # of models of text and more
ITEM_BYTES = {"float64": 8, "float32": 4}
# What pretrained models are fine-tuned with; decay would draw norms and biases to zero, too.
TRAINING = {"learning_rate": 2e-5, "weight_decay": 0.0}


def native_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """Make of a config.json what `TransformersConfig.to_dict` gives.

    Raises:
        ValueError: its family has no card, or it lacks a size.
    """
    kind = document.get("model_type")
    if kind not in LAYOUTS:
        part = next((document[key] for key in TEXT_PARTS if isinstance(document.get(key), Mapping)), None)
        if part is not None:
            known = LAYOUTS.get(part.get("model_type"))
            title = known.title if known else part.get("model_type") or "a language model"
            what = f"{kind or 'an unknown kind'}, a model of text and more, whose text part is {title}"
            raise ValueError(f"this is the config of {what}: save the text part alone, with a config of its own")
        return _traced(document)
    needs = LAYOUTS[kind].needs
    whole = {**LAYOUTS[kind].defaults, **document}
    if wrong := [key for key, value in needs.items() if whole.get(key) != value]:
        key, title = wrong[0], LAYOUTS[kind].title
        raise ValueError(f"its {key} is {show(whole.get(key))}, and {title} is known with {show(needs[key])} alone")
    return TransformersConfig.from_source(document).to_dict()


def _traced(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read the config of a class that no row describes: all else is in the class itself.

    Raises:
        ValueError: transformers has no such class, or it cannot be traced.
    """
    kind, classes = document.get("model_type"), ", ".join(map(str, document.get("architectures") or ()))
    what = f"this is {type_family(kind) or kind or classes or 'no known model'}'s config"
    if not kind or find_spec("transformers") is None:
        raise ValueError(what)
    from sprunec.families.huggingface.traced_layout import read_layout

    try:
        return TransformersConfig.from_source(document, read_layout(json.dumps(document))).to_dict()
    except ValueError as error:
        raise ValueError(f"{what}, and {error}") from None


def guess(shapes: Mapping[str, Shape], path: Path) -> TransformersConfig:
    """Raise InputError: weights alone do not say which heads they have."""
    raise InputError.at(path, "these weights come without a config", "inspect the directory that they are in")


def data_findings(config: TransformersConfig, data: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Tell rows that are longer than the model's table of positions, or of documents that it cannot keep apart."""
    most, asked = config.sizes.get("P"), data.get("max_length")
    if most is not None and asked is not None and asked > most:
        message = f"{asked} is above {most}, the positions that the model has"
        yield Diagnostic("too-long", message, f"give at most {most}", pointer="/data/max_length")
    if data.get("source") == "cpm-live":
        message = "a cpm-live set is made for CPM-Ant: its records have prompts and segments of their own"
        yield Diagnostic("foreign-data", message, "choose another source", pointer="/data/source")
    if data.get("packing") == "documents" and (why := _undivided(config)):
        message = f"this model cannot keep the documents of a row apart: {why}"
        yield Diagnostic("cannot-pack", message, "remove packing", pointer="/data/packing")


def _undivided(config: TransformersConfig) -> str:
    """Say why a row of a model can have but one document; "" where that is not so."""
    if not config.traced:
        return UNDIVIDED.get(config.document["model_type"], "")
    from sprunec.families.huggingface.stock_model import undivided

    return undivided(config)


def _outermost(layout: Layout) -> str:
    """Give the name of the module that everything but the head is in; some files leave it out."""
    return layout.blocks.partition(".")[0] + "."


def parts(config: TransformersConfig, names: Collection[str]) -> dict[str, Part]:
    """Find every tensor in a file with these names; older files leave the outermost module's name out."""
    if of_file(names):
        return {name: Part(origin.name) for name, origin in origins(config).items()}
    wanted = config.tensors()
    outermost = _outermost(config.layout)
    bare = not any(name.startswith(outermost) for name in names)
    return {name: Part(name.removeprefix(outermost) if bare else name) for name in wanted}


def native_shapes(config: TransformersConfig, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Call a file's shapes by the model's names; a tied head's copy is no part of the model."""
    if of_file(shapes):
        return model_shapes(config, shapes)
    found = parts(config, shapes)
    named = {name: shapes[part.name] for name, part in found.items() if part.name in shapes}
    used = {part.name for part in found.values()} | ({config.layout.head} if config.tie_word_embeddings else set())
    return named | {name: shape for name, shape in shapes.items() if name not in used}


def head_names(names: Collection[str]) -> tuple[str, str] | None:
    """Find the names of a file's head and of its embedding; None where it has no head."""
    tables = [(layout, next(iter(layout.tables))) for layout in LAYOUTS.values()]
    pairs = [(HEAD, TABLE)] + [(layout.head, table) for layout, table in tables]
    pairs += [(layout.head, table.removeprefix(_outermost(layout))) for layout, table in tables]
    return next((pair for pair in pairs if all(name in names for name in pair)), None)


def state_widths(config: TransformersConfig) -> dict[str, Widths]:
    """Give blocks, and the linears in them: what they are given and give."""
    width, found, first = config.width, dict[str, Widths](), config.layout.inputs_first
    for index, layer in enumerate(config.layers):
        if layer.counts:
            found[f"{config.layout.blocks}.{index}"] = (width, width)
    for name, shape in config.tensors().items():
        if name.startswith(config.layout.blocks) and len(shape) == 2:
            found[name.removesuffix(".weight")] = (shape[0], shape[1]) if first else (shape[1], shape[0])
    return found


def cache_bytes(config: TransformersConfig, length: int = 1) -> int | None:
    """Count what keys and values of so many tokens take, as the class itself caches them: in a window only its last."""
    asked, found = config.layout.cache, 0
    for layer, window in zip(config.layers, windows(config), strict=True):
        if layer.heads:
            if "E" in asked and not layer.dim_head:
                return None
            found += config.shape(asked, layer.counts)[0] * min(length, window or length)
    return found * item_bytes(config)


def windows(config: TransformersConfig) -> list[int | None]:
    """Give by layer how many positions it sees, where config.json lists the kinds of layers; else None, for all."""
    kinds, window = config.document.get("layer_types"), config.document.get("sliding_window")
    sliding = [kind == "sliding_attention" for kind in kinds] if isinstance(kinds, list) and window else []
    return [window if index < len(sliding) and sliding[index] else None for index in range(len(config.layers))]


def item_bytes(config: TransformersConfig) -> int:
    """Count the bytes of a number in the type that the config names, else in one of 16 bits."""
    dtype = config.document.get("dtype") or config.document.get("torch_dtype")
    return ITEM_BYTES.get(str(dtype), 2)


CARD = Card(
    name=FAMILY,
    title=lambda config: config.layout.title,
    code="sprunec.families.huggingface.transformers_family",
    own_code=False,
    code_release=installed,
    config=TransformersConfig.from_dict,
    schema="",
    native_keys=native_keys,
    older_key=lambda key, value: None,
    config_findings=config_findings,
    guess=guess,
    data_findings=data_findings,
    data_options=lambda config, source: {},
    fixed_units=lambda config: config.layout.fixed,
    parts=parts,
    native_shapes=native_shapes,
    sparse=lambda config: (f"{config.layout.blocks}.",),
    input_first=lambda config: tuple(config.layout.input_first),
    training=TRAINING,
    head_names=head_names,
    state_widths=state_widths,
    cache_bytes=cache_bytes,
    windows=windows,
    item_bytes=item_bytes,
    huggingface_options=lambda source: {},
    pairs_hint='add "pairs": ["[post]model.layers.1:[post]model.layers.1"]',
    states_hint='such modules are "model.layers.0" and the linears in it',
)
