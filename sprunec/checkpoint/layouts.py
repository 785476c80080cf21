"""Which files a checkpoint consists of, in every layout that Hugging Face's libraries write; needs no torch.

A checkpoint is a file of tensors, an index with the shards beside it, or a directory with one of these in it:
safetensors before what torch saves, the standard names before any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sprunec.errors import InputError, and_more
from sprunec.text_files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PT_WEIGHTS = "model.pt"
CONFIG = "config.json"
# Of each group one may be there; the first group that has any counts.
STANDARD = ((WEIGHTS, INDEX), (BIN, BIN_INDEX, PT_WEIGHTS))
SAFETENSORS, TORCH = (".safetensors",), (".bin", ".pt", ".pth", ".ckpt")
_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.\w+$")
_NO_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state|random_states|pattern|adapter_model)")


def weight_files(path: Path) -> list[Path]:
    """List the files that a checkpoint is made of: the path, or what a directory or an index names, index first.

    Raises InputError for a directory without weights, or with several, and for an index that cannot be followed.
    """
    file = _weights_in(path) if os.path.isdir(path) else path
    return [file, *_shards(file)] if is_index(file) and os.path.exists(file) else [file]


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """List what a checkpoint depends on: as `weight_files`, or `path` itself where those cannot be told."""
    try:
        return tuple(weight_files(path))
    except InputError:
        return (path,)


def is_index(path: Path) -> bool:
    """Tell whether a file is, by its name, an index of shards."""
    return bool(_INDEX.search(path.name))


def has_weights(directory: Path) -> bool:
    """Tell whether anything in a directory could be a checkpoint, sound or not."""
    return bool(_candidates(_names(directory)))


def checkpoint_names(names: Iterable[str]) -> list[str]:
    """Choose, of the names in a directory, those that its checkpoint is made of; of an index also its shards."""
    there = sorted(names)
    found = _candidates(there)
    stems = [_INDEX.sub("", name).rpartition(".") for name in found if _INDEX.search(name)]
    shards = (name for name in there for stem, _, ending in stems if _is_shard(name, stem, ending))
    return [*found, *shards]


def _is_shard(name: str, stem: str, ending: str) -> bool:
    return name.startswith(f"{stem}-") and name.endswith(f".{ending}") and _SHARD.search(name) is not None


def _weights_in(directory: Path) -> Path:
    names = _names(directory)
    found = _candidates(names)
    if len(found) == 1 and not _SHARD.search(found[0]):
        return directory / found[0]
    code, message = "several-checkpoints", f"has several checkpoints: {first_names(found)}"
    remedy = "name the one that is meant"
    if not found:
        code, message = (
            "no-weights",
            f"has no weights{f'; there is {first_names(names)}' if names else ': it is empty'}",
        )
        remedy = f"give a directory with {WEIGHTS}, {BIN} or their shards in it"
        if "adapter_config.json" in names:
            remedy = "this is a PEFT adapter: merge it into its model with merge_and_unload(), and save that"
    elif all(_SHARD.search(name) for name in found):
        code, message = "no-index", f"has shards, {first_names(found)}, and no index of them"
        remedy = f"put their index beside them, {INDEX if found[0].endswith(SAFETENSORS) else BIN_INDEX}"
    raise InputError.at(directory, message, remedy, code)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as error:
        raise InputError.of_disk(directory, error, "cannot be read") from None


def _candidates(names: Iterable[str]) -> list[str]:
    """List the files that may be the checkpoint; more than one where nobody can say which."""
    there = [name for name in names if not _NO_WEIGHTS.match(name)]
    groups = [[name for name in group if name in there] for group in STANDARD]
    for endings in (SAFETENSORS, TORCH):
        groups.append([name for name in there if _INDEX.search(name) and _INDEX.sub("", name).endswith(endings)])
        groups.append([name for name in there if name.endswith(endings)])
    return next(filter(None, groups), [])


def first_names(names: Sequence[str], most: int = 8) -> str:
    """Join names, the first so many of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def weight_map(index: Path) -> dict[str, str]:
    """Read in which shard every tensor is; raises InputError for what is no index, or names files elsewhere."""
    hint = "it must have a weight_map"
    content = read_json(index, "an index of shards", hint)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError.at(index, "is no index of shards", hint)
    names = set(shards.values())
    # None may stand for an artifact's own notes, or lie elsewhere.
    if any(Path(name).name != name or name in ("", "..") or name.endswith(".json") or "\0" in name for name in names):
        raise InputError.at(index, "names a shard outside its own directory", "name files of tensors beside it")
    return shards


def _shards(index: Path) -> list[Path]:
    shards = sorted(set(weight_map(index).values()))
    if missing := [shard for shard in shards if not os.path.lexists(index.parent / shard)]:
        where = f"{'are' if len(missing) > 1 else 'is'} not beside it ({len(missing)} of {len(shards)} shards)"
        message = f"names {first_names(missing)}, which {where}"
        raise InputError.at(index, message, "copy or download what is missing", code="missing-file")
    return [index.parent / shard for shard in shards]


def superseded(index: Path) -> set[str]:
    """List the tensors that some shards still have, while the index names newer ones of theirs: an artifact's own."""
    metadata = read_json(index, "an index of shards", "").get("metadata")
    names = metadata.get("superseded") if isinstance(metadata, dict) else None
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def check_index(index: Path, found: Mapping[Path, Iterable[str]]) -> None:
    """Raises InputError where an index and the tensors `found` in its shards disagree."""
    said, hint = weight_map(index), "the index is of another checkpoint: copy both again"
    there = {(name, shard.name) for shard, names in found.items() for name in names}
    if absent := [(name, shard) for name, shard in said.items() if (name, shard) not in there]:
        more = and_more(absent, "{} more like it")
        raise InputError.at(index, "says that {} is in {}, which has no such tensor".format(*absent[0]) + more, hint)
    old = superseded(index)
    for name, shard in sorted(each for each in there - set(said.items()) if each[0] not in old):
        where = f"says that it is in {said[name]}" if name in said else "does not name it"
        raise InputError.at(index, f"{shard} has {name}, and the index {where}", hint)
