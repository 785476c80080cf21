"""The format `huggingface`: a directory for `AutoModelForCausalLM.from_pretrained`, as the model's family writes it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.data.fast_tokenizer import gguf_lacks
from sprunec.durable import read_file
from sprunec.errors import FormatError
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.families.own_code import MODULES, code_files
from sprunec.plan.export_formats import Emission, Format, Opening, Options, Reopened

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs
    from sprunec.plan.plan import Plan

NEWEST = 5
PLACE = "path/to/this/directory"
# What users need beside a library's model: its tokenizer, how it generates, and what they may do with it.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
)
SCRIPTS = "sprunec.families.huggingface"
STEPS, FEWER_STEPS = 4, 2  # positions that are decoded one by one; fewer where each reads all weights again
# Of what a library says when it cannot open something, the line that says why.
TELLING = {"transformers": r"[\w.]*(Error|Exception)\b", "llama.cpp": r".*error loading model: "}
HELD_BYTES = 2**30  # a model is opened whole, as users do, where it takes no more in float32
PROCESS_BYTES, PART_BYTES = 5e8, 2.5e8  # of the libraries; of a weight in parts, and of what is said


def options(plan: Plan) -> Options:
    """Find what the family asks for, the installed transformers, the vocabulary for its tokenizer."""
    data = plan.data
    files: dict[str, tuple[Path, ...]] = {}
    if data is not None and (vocabulary := data.tokenizer if isinstance(data.tokenizer, Path) else data.vocab):
        files["vocab"] = (vocabulary,)
    about, directory = card_of(plan.model.config), plan.model.checkpoint
    asked = about.huggingface_options(data.source if data is not None else "")
    if not about.own_code and directory is not None:
        beside = (path for name in BESIDE if (path := directory / name).is_file())
        own = (directory,) if is_gguf(directory) and not gguf_lacks(directory) else ()
        files = {"beside": (*own, *beside, *code_files(directory))}
    return {"transformers": transformers_release()} | asked, files


def transformers_release() -> int:
    """Tell the installed package's first number, or the newest; from 5 on it keeps the head apart."""
    try:
        return int(metadata.version("transformers").split(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return NEWEST


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    return family_of(emission.config).write_huggingface(emission, directory)


def reopen(directory: Path, config: ModelConfig, weights: Tensors) -> Reopened:
    """Open it in float32, weight by weight if it is a large one; it sees texts of their own."""
    import torch

    about, family, skipped = json.loads(read_file(directory / "config.json")), family_of(config), config.overhead
    stored, own = getattr(torch, about["dtype"]), "auto_map" in about
    whole, cached = 4 * config.parameters() <= HELD_BYTES, any(family.cache_shapes(config))
    steps = (STEPS if whole else FEWER_STEPS) if cached and not card_of(config).own_code else 0
    gaps, how = list[float](), ("own" if own else "stock", "whole" if whole else "parts", str(steps))

    def texts(batch: Inputs) -> list[Inputs]:
        return family.huggingface_texts(config, about, batch)

    def logits(inputs: list[Inputs]) -> Tensor:
        rows = [batch["input"][0, skipped:] for batch in inputs]
        said = opened_apart("huggingface", f"{SCRIPTS}.stock_reader", directory, rows, *how)
        gaps.append(said["gap"])
        # some classes have rows beyond the tokens
        return torch.cat(said["logits"])[:, : config.vocab_size]

    folded = card_of(config).own_code and not own  # whose factors have been rounded to the stored dtype
    return Reopened(stored, stored if folded else torch.float32, logits, texts, skipped, gaps, own)


def opened_apart(
    form: str, script: str, path: Path, texts: Sequence[Tensor], *more: str, library: str = "transformers"
) -> Any:
    """Run what was written in a process of its own: that runs its code, writes a cache of it, or may end it.

    Args:
        script: a module that is given the path, a file of texts (n,), one for what it finds, and `more`.
        library: what opens it there.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "texts.pt", Path(folder) / "found.pt"
        torch.save(texts, given)
        quiet = {"HF_HOME": folder, "HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
        # What this process has a class from, but for directories: the one that is opened has its own code.
        quiet["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if not (Path(path) / MODULES).is_dir())
        command = [sys.executable, "-P", "-m", script, *map(str, (path, given, found)), *more]
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            told = (line for line in reversed(lines) if re.match(TELLING[library], line))
            last = next(told, lines[-1])
            last = f"{signal.Signals(-done.returncode).name} has ended it" if done.returncode < 0 else last
            raise FormatError(f"{library} cannot open the format {form}: {last}")
        return torch.load(found, weights_only=True)


def opens(config: ModelConfig) -> float:
    """Count what `reopen` takes, in a process of its own."""
    return PROCESS_BYTES + (whole if (whole := 4 * config.parameters()) <= HELD_BYTES else PART_BYTES)


def opening(directory: Path, about: Mapping[str, Any]) -> Opening:
    """Say how the directory is opened, with its own classes if it has any, and its tokenizer if it has one."""
    own = "auto_map" in json.loads(read_file(directory / "config.json"))
    loads = {"AutoModelForCausalLM": "model"}
    loads |= {"AutoTokenizer": "tokenizer"} if (directory / "tokenizer_config.json").is_file() else {}
    trusting = ", trust_remote_code=True" if own else ""
    code = (f'{name} = {auto}.from_pretrained("{PLACE}"{trusting})' for auto, name in loads.items())
    why = f"It brings its own code, since no class of transformers can be it: {'; '.join(about['why'])}." if own else ""
    return Opening("transformers", (f"from transformers import {', '.join(loads)}", "", *code), why)


HUGGINGFACE = Format(
    "huggingface",
    write,
    reopen,
    package=("transformers", "sprunec[hf]"),
    shares=lambda config: not card_of(config).own_code,  # of a library's model the weights are as they are
    opens=opens,
    folds=True,
    opening=opening,
    options=options,
)
