"""A CPM-Ant as a directory for `AutoModelForCausalLM.from_pretrained`.

Where transformers' own `CpmAntForCausalLM` can be the model it is that, its weights folded; else it brings its own
classes (`trust_remote_code=True`), and the weights are as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sprunec.checkpoint.writer import Output, as_outputs, write_outputs
from sprunec.durable import copy_file, write_new
from sprunec.families.base import Document, Inputs
from sprunec.families.cpm_ant import huggingface_names as hf
from sprunec.families.cpm_ant.config import TEXT_TASK, ModelConfig
from sprunec.families.cpm_ant.folding import folded, stored_dtype
from sprunec.families.cpm_ant.inputs import arrange
from sprunec.families.cpm_ant.uniform import even_config
from sprunec.families.model_directory import open_model_tensors
from sprunec.families.vocabulary import vocabulary_lines

if TYPE_CHECKING:
    from sprunec.plan.export_formats import Emission

MODELING = "modeling_sprunec"
CODE = (f"{MODELING}.py", "blocks.py", "model.py", "modules.py", "config.py")
TOKENIZER = "CpmAntTokenizer"
MARKS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
NEEDED = (*MARKS.values(), "</n>", "</_>")


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    config, state, task = emission.config, open_model_tensors(emission.model), emission.options["task"]
    assert isinstance(config, ModelConfig)
    directory.mkdir()
    obstacles = hf.stock_obstacles(config)
    obstacles += [] if task == hf.STOCK_TASK else [f"it has been trained behind prompt {task}"]
    if obstacles:
        dtype = stored_dtype(state, "keep")
        write_outputs({hf.OWN_PREFIX + name: output for name, output in as_outputs(state).items()}, directory)
        for file in CODE:
            copy_file(Path(__file__).parent / file, directory / file)
        document = _own_config(config, task)
    else:
        dtype = stored_dtype(state, emission.options["dtype"])
        outputs = folded(config, state, emission.options["dtype"], plain_linears=True)
        write_outputs(dict(_stock_tensors(outputs, emission.options["transformers"])), directory)
        document = {"architectures": ["CpmAntForCausalLM"], "model_type": hf.STOCK}
        # From release 5 on their class has two tables in any case, and tools ask the config whether it does.
        tied = config.tie_word_embeddings and emission.options["transformers"] < 5
        document |= hf.stock_keys(even_config(config)) | {"tie_word_embeddings": tied, "pad_token_id": 0}
    word = str(dtype).removeprefix("torch.")
    marks = _tokenizer(emission, directory)
    document |= marks | {"dtype": word, "torch_dtype": word}
    write_new(directory / "config.json", json.dumps(document, indent=1))
    write_new(directory / "generation_config.json", json.dumps({"pad_token_id": 0} | marks, indent=1))
    return {"dtype": word, "classes": "own" if obstacles else "stock", "why": obstacles}


def write_shape(config: ModelConfig, directory: Path) -> None:
    """Write a directory with our own classes, but without weights and vocabulary; which heads are left is no matter."""
    layers = (replace(each, kept_heads=each.bias_columns if each.heads else None) for each in config.layers)
    config = config.with_layers(layers)
    directory.mkdir()
    for file in CODE:
        copy_file(Path(__file__).parent / file, directory / file)
    write_new(directory / "config.json", json.dumps(_own_config(config, TEXT_TASK)))


def _own_config(config: ModelConfig, task: int) -> dict[str, Any]:
    names = {"AutoConfig": "SprunecConfig", "AutoModelForCausalLM": "SprunecForCausalLM"}
    return {
        "architectures": ["SprunecForCausalLM"],
        "model_type": hf.OWN,
        "auto_map": {auto: f"{MODELING}.{name}" for auto, name in names.items()},
        "task": min(task, config.prompt_types - 1),
        "segment": min(hf.STOCK_SEGMENT, config.segment_types - 1),
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        hf.OWN_SECTION: config.to_dict(),
    }


def _stock_tensors(outputs: Mapping[str, Output], transformers: int) -> Iterator[tuple[str, Output]]:
    """Name the tensors; from release 5 on the head is one of its own, before it has the prompts' rows too."""
    for name, output in outputs.items():
        if name == hf.EMBEDDING:
            yield hf.STOCK_PREFIX + name, _stacked(output, outputs[hf.PROMPTS])
            if transformers >= 5 and hf.HEAD not in outputs:
                yield hf.HEAD, output
        elif name == hf.HEAD:
            yield name, output if transformers >= 5 else _stacked(output, outputs[hf.PROMPTS])
        elif name != hf.PROMPTS:
            yield hf.STOCK_PREFIX + name, output


def _stacked(above: Output, below: Output) -> Output:
    shape = (above.shape[0] + below.shape[0], *above.shape[1:])
    return Output(shape, above.dtype, lambda: chain(above.parts(), below.parts()))


def _tokenizer(emission: Emission, directory: Path) -> dict[str, int]:
    """Write the plan's vocabulary, for transformers' tokenizer if it has what that needs -> ids of the marks."""
    if "vocab" not in emission.files:
        return {}
    (file,) = emission.files["vocab"]
    lines = vocabulary_lines(file)  # as transformers reads them: no byte order mark, one line end
    write_new(directory / "vocab.txt", "".join(f"{piece}\n" for piece in lines))
    pieces = {piece: number for number, piece in enumerate(lines)}
    if all(piece in pieces for piece in NEEDED):
        about = MARKS | {"tokenizer_class": TOKENIZER, "padding_side": "left"}
        write_new(directory / "tokenizer_config.json", json.dumps(about, indent=1))
    return {f"{name[:3]}_token_id": pieces[MARKS[name]] for name in ("bos_token", "eos_token") if MARKS[name] in pieces}


def texts(config: ModelConfig, about: Mapping[str, Any], batch: Inputs) -> list[Inputs]:
    """Make of each row what transformers' classes see of it: a text behind one prompt, all of it context.

    Args:
        about: the directory's config.
    """
    prompt, task, segment = (
        config.prompt_length,
        about.get("task", hf.STOCK_TASK),
        about.get("segment", hf.STOCK_SEGMENT),
    )
    rows = zip(batch["input"], batch["length"].tolist(), strict=True)
    found = [row[prompt:length].clamp(1, config.vocab_size - 1) for row, length in rows if length > prompt]
    return [all_context(text, config, task, segment) for text in found]  # token 0 would be padding


def all_context(tokens: Tensor, config: ModelConfig, task: int, segment: int) -> dict[str, Tensor]:
    """Make inputs of `CPMAnt.forward` for one row of tokens (n,), as `transformers` does."""
    ids, everywhere = tokens.numpy(), np.ones(tokens.numel(), dtype=bool)
    document = Document(ids, everywhere, ids, task, np.full(ids.size, segment))
    inputs, _ = arrange(config, [[document]], config.prompt_length + ids.size)
    return {name: torch.from_numpy(value) for name, value in inputs.items()}
