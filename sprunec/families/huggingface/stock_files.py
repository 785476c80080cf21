"""A cut model as a directory that its stock class in `transformers` opens: config edited in place, weights as they are.

One config is for all layers there, so that only layers of one shape fit; those that were removed are left out, and the
others numbered anew: the small model's artifact has these names already, so that its files can be the directory's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.gguf_file import is_gguf, read_gguf
from sprunec.checkpoint.writer import Output, as_outputs, link_or_write
from sprunec.durable import copy_file, write_new
from sprunec.errors import FormatError
from sprunec.families.base import Inputs
from sprunec.families.gguf.tokenizer_files import tokenizer_files
from sprunec.families.huggingface.ragged_files import MODELING, head_name, modeling_source, ragged_config
from sprunec.families.huggingface.tensor_layouts import KEYS
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import open_model_tensors
from sprunec.units import SUBLAYERS, UNITS, sublayers_of

if TYPE_CHECKING:
    from sprunec.plan.export_formats import Emission


BY_NUMBER = "scale_attn_by_inverse_layer_idx"


def obstacles(config: TransformersConfig) -> Iterator[str]:
    """Say why no class, of whatever layers, can be this model; nothing where one can."""
    if not any(layer.heads for layer in config.layers):
        yield "it has no attention left"
    gone = next((number for number, index in enumerate(config.left) if number != index), None)
    if config.document.get(BY_NUMBER) and gone is not None:
        yield f"its class divides scores by the number of the layer, and layer {gone} is gone"


def unlike(config: TransformersConfig) -> Iterator[str]:
    """Say why no stock class can be this model; nothing where one can."""
    if config.traced:
        yield f"{config.layout.title} is read as it is, and not as a known family"
    layers = [config.layers[index] for index in config.left]
    for kind in SUBLAYERS:
        if lacking := [index for index in config.left if kind not in sublayers_of(config.layers[index].counts)]:
            yield f"layer {', '.join(map(str, lacking))} has no {kind.replace('_', '-')}"
    for unit in {unit: None for layer in layers for unit in layer.counts}:
        if len(each := {layer.counts[unit] for layer in layers if unit in layer.counts}) > 1:
            yield f"its layers have {min(each)} to {max(each)} {UNITS[unit].several}"
    width, heads = config.width, layers[0].heads
    if not config.layout.uneven_dims and layers[0].dim_ff not in (0, 4 * width):
        yield f"{config.layout.title}'s class has {4 * width} feed-forward dims, and {layers[0].dim_ff} are left"
    if not config.layout.uneven_heads and heads * layers[0].dim_head != width:
        yield f"{config.layout.title}'s class has heads of {width} / heads dims, and {heads} are left"
    elif not _divides(config) and not _renamed(config):
        yield f"{config.layout.title}'s class wants as many heads as divide {width}, and {heads} are left"


def _divides(config: TransformersConfig) -> bool:
    """Tell whether the class takes the number of heads: some only one that divides the model's width."""
    heads = next((layer.heads for layer in config.layers if layer.heads), 1)
    return not config.layout.heads_divide_width or config.width % heads == 0


def _renamed(config: TransformersConfig) -> dict[str, Any]:
    """Give what changes in the config of a Llama whose class refuses its heads: Mistral's computes the same."""
    biased = any(config.document.get(key) for key in ("attention_bias", "mlp_bias"))
    if config.document["model_type"] != "llama" or biased or _divides(config):
        return {}
    return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def stock_config(config: TransformersConfig) -> dict[str, Any]:
    """Edit what config.json says: sizes, lists with an entry a layer."""
    layer = config.layers[config.left[0]]
    sizes = {"H": layer.heads, "G": layer.kv_groups or layer.heads, "F": layer.dim_ff}
    if config.layout.uneven_heads:
        sizes["E"] = layer.dim_head
    document = shorter_config(config)
    for letter, size in sizes.items():
        named = [key for key in KEYS[letter] if key in document]
        if named or letter in "EG":
            document[named[0] if named else KEYS[letter][0]] = size
    return document | _renamed(config)


def shorter_config(config: TransformersConfig) -> dict[str, Any]:
    """Edit what config.json says about the number of layers, and of each one."""
    document, there = dict(config.document), config.left
    keys = {**KEYS, **config.layout.keys}["L"]
    document[next((key for key in keys if key in document), keys[0])] = len(there)
    for key in config.layout.by_layer:
        if isinstance(document.get(key), list):
            document[key] = [document[key][index] for index in there]
    for key in (key for key in config.layout.by_depth if key in document):
        document[key] *= math.sqrt(len(there) / len(config.layers))
    if {**config.layout.defaults, **document}.get("tie_word_embeddings", False) != config.tie_word_embeddings:
        document["tie_word_embeddings"] = config.tie_word_embeddings  # the weights say otherwise
    return document


def emitted_names(config: TransformersConfig) -> dict[str, str]:
    """Number the layers that are left anew; some releases rename the head, for its stock class alone."""
    there, blocks, names = config.left, f"{config.layout.blocks}.", dict[str, str]()
    own = bool(there) and any(unlike(config))
    for name in config.tensors():
        if name.startswith(blocks):
            number, _, rest = name.removeprefix(blocks).partition(".")
            names[name] = f"{blocks}{there.index(int(number))}.{rest}"
        else:
            names[name] = head_name(config) if own and name == config.layout.head else name
    return names


def stored_names(config: TransformersConfig) -> dict[str, str]:
    """Give a cut model the names that it is emitted with."""
    return {} if config.layers == config.uncut.layers else emitted_names(config)


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    """Write it for its stock class, or where that cannot be it for one of its own.

    Raises:
        FormatError: no class can be it.
    """
    config = emission.config
    assert isinstance(config, TransformersConfig)
    document, why = described(config)
    state, names = open_model_tensors(emission.model), emitted_names(config)
    outputs = {names[name]: output for name, output in as_outputs(state).items()}
    dtype = write_files(emission, directory, document, outputs)
    if why:
        write_new(directory / f"{MODELING}.py", modeling_source(config))
    return {"dtype": dtype, "classes": "own" if why else "stock", "why": why, "class": document["architectures"][0]}


def described(config: TransformersConfig) -> tuple[dict[str, Any], list[str]]:
    """Make its config.json, and say why it is for a class of its own; nothing where it is for the stock class.

    Raises:
        FormatError: no class can be it.
    """
    if problems := list(obstacles(config)):
        raise FormatError(f"the format huggingface cannot hold this model: {'; '.join(problems)}")
    why = list(unlike(config))
    return ragged_config(config, shorter_config(config)) if why else stock_config(config), why


def write_shape(config: TransformersConfig, directory: Path) -> None:
    """Write a directory as `write` does, but for weights and what goes along with them."""
    document, why = described(config)
    directory.mkdir()
    write_new(directory / "config.json", json.dumps(document))
    if why:
        write_new(directory / f"{MODELING}.py", modeling_source(config))


def write_files(emission: Emission, directory: Path, document: Mapping[str, Any], outputs: Mapping[str, Output]) -> str:
    """Write a config.json, weights, and what goes along with them -> what the weights are stored in."""
    directory.mkdir()
    link_or_write(outputs, directory)
    for file in emission.files.get("beside", ()):
        if is_gguf(file):  # a model of one file, with its tokenizer in it
            for name, text in tokenizer_files(read_gguf(file).metadata).items():
                write_new(directory / name, text)
        else:
            copy_file(file, directory / file.name)
    dtype = str(next(iter(outputs.values())).dtype).removeprefix("torch.")
    write_new(directory / "config.json", json.dumps({**document, "dtype": dtype, "torch_dtype": dtype}, indent=2))
    return dtype


def texts(config: TransformersConfig, about: Mapping[str, Any], batch: Inputs) -> list[Inputs]:
    """Take each row of a batch as a text of its own."""
    rows = zip(batch["input"], batch["length"], strict=True)
    return [{"input": row[None, : int(length)], "length": length[None]} for row, length in rows]
