"""Weights in and out of files: safetensors, one file or shards with an index, and torch's `.pt`; nothing unpickles."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sprunec.errors import InputError
from sprunec.model.config import LayerKept, ModelConfig, kept_from_json, kept_to_json
from sprunec.model.cpm_ant import build
from sprunec.model.frame import CPMAnt
from sprunec.model.shapes import read_header

SHARD_BYTES = 5 * 2**30
WEIGHTS = "model.safetensors"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file or of a directory that holds one, on the CPU, in their own dtype.

    Raises:
        InputError: the file is missing, damaged, or holds anything but named tensors.
    """
    try:
        if path.is_dir():
            return _read_directory(path)
        return load_file(path) if path.suffix == ".safetensors" else _read_pt(path)
    except FileNotFoundError as error:
        raise InputError.at(path, "there is no such file", "give the path of a checkpoint") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError.at(path, f"cannot be read as a checkpoint: {line}", "save it again") from error


def _read_directory(path: Path) -> dict[str, Tensor]:
    index = path / f"{WEIGHTS}.index.json"
    if not index.exists():
        return load_file(path / WEIGHTS)
    return {name: tensor for shard in _shard_files(index) for name, tensor in load_file(shard).items()}


def _shard_files(index: Path) -> list[Path]:
    try:
        shards = sorted({str(shard) for shard in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError.at(index, "is no index of shards", "it must have a weight_map") from error
    if any(Path(shard).name != shard for shard in shards):
        raise InputError.at(index, "names a shard outside its own directory", "name the files beside it")
    return [index.parent / shard for shard in shards]


def _read_pt(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError.at(path, "is no state dict: it must map names to tensors", "save model.state_dict()")
    return state


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes only: of safetensors from the headers, of a `.pt` without reading its data."""
    files = [path]
    if path.is_dir():
        index = path / f"{WEIGHTS}.index.json"
        files = _shard_files(index) if index.exists() else [path / WEIGHTS]
    if files[0].suffix == ".safetensors":
        return {name: shape for file in files for name, shape in read_header(file).items()}
    return {name: tuple(tensor.shape) for name, tensor in read_state(path).items()}


def write_state(state: Mapping[str, Tensor], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors into `directory`: one file, or shards with an index above `shard_bytes`."""
    shards = list(_shards(state, shard_bytes))
    if len(shards) <= 1:
        _save(_plain(state), directory / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(_plain({name: state[name] for name in names}), directory / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=1))


def _shards(state: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in state.items():
        if names and size + tensor.nbytes > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(None, f"the weights cannot be written: {error}", str(path)) from error


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


# --- a model as a directory: config.json, kept.json, weights ---


def save_model(directory: Path, config: ModelConfig, kept: tuple[LayerKept, ...], state: Mapping[str, Tensor]) -> None:
    """`kept` says in the plan's input model's indices what the model still has."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    (directory / "kept.json").write_text(json.dumps(kept_to_json(kept)))
    write_state(state, directory)


def read_config(directory: Path) -> ModelConfig:
    """Raises InputError for anything but a model config."""
    path = directory / "config.json"
    try:
        config = ModelConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if len(config.layers) != config.num_layers:
            raise ValueError(f"it has {len(config.layers)} layers and says {config.num_layers}")
        if any(size < 0 for layer in config.layers for size in (layer.heads, layer.dim_head, layer.dim_ff)):
            raise ValueError("it has a negative size")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError.at(path, f"is no model config: {error}", "give a directory that `emit` wrote") from error
    return config


def read_kept(directory: Path) -> tuple[LayerKept, ...]:
    return kept_from_json(json.loads((directory / "kept.json").read_text()))


def load_model(directory: Path, device: torch.device | str = "cpu") -> CPMAnt:
    """Build from `config.json` and fill with the weights beside it; runs no code from the directory."""
    model = empty_model(read_config(directory))
    fill(model, read_state(directory), directory)
    return model.to(device)


def load(path: str | Path, device: torch.device | str = "cpu") -> CPMAnt:
    """The model of an emitted directory, in eval mode, from its config and weights; its `model.py` is never executed.

    Raises:
        InputError: the directory holds no such model, or its files do not fit each other.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise InputError.at(directory, "has no config.json", "give a directory that `emit` wrote, OUT/model/sprunec")
    return load_model(directory, device).eval()


def empty_model(config: ModelConfig) -> CPMAnt:
    """On the meta device: a shape without memory."""
    with torch.device("meta"):
        return build(config)


def fill(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Put `state` into a model on the meta device, names and shapes exactly.

    Raises:
        InputError: a tensor is missing, left over, or of another shape; names the first of each.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())[:1]]
    problems += [f"{name} is not in the model" for name in sorted(given.keys() - wanted.keys())[:1]]
    wrong = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    problems += [f"{name} is {given[name]}, the config wants {wanted[name]}" for name in wrong[:1]]
    if problems:
        raise InputError.at(source, f"the checkpoint does not fit the config: {'; '.join(problems)}")
    model.load_state_dict(state, strict=True, assign=True)
