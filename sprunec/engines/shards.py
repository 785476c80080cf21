"""Tensors in shards on several ranks, as a folder that a world of any size reads: torch's distributed checkpoint.

torch reads such a folder's index with pickle, and objects in it without `weights_only`. Here only tensors are written,
and the index is read by `load_pickle`, which is given no more than the classes that an index of tensors is made of.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from sprunec.checkpoint.safe_pickle import Refused, load_pickle
from sprunec.durable import naming
from sprunec.errors import PassError

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_OF_METADATA: tuple[str, ...] = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")
_OF_METADATA += ("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")
ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    **{f"torch.{name}": found for name, found in vars(torch).items() if isinstance(found, torch.dtype)},
    **{f"{module}.{name}": PurePath for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"{metadata.__name__}.{name}": getattr(metadata, name) for name in _OF_METADATA},
    f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo,
}
MOST_OPCODES = 10**9  # of our own saves; the more ranks, the more of them

_groups: dict[str, Any] = {}


class SealingWriter(FileSystemWriter):
    """Calls `seal`, on rank 0 alone, once all ranks have written; what that raises, all ranks are told."""

    def __init__(self, directory: Path, seal: Callable[[], None]) -> None:
        super().__init__(str(directory), sync_files=True)
        self._seal = seal

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self._seal()


def write_shards(directory: Path, tensors: Mapping[str, Tensor], seal: Callable[[], None]) -> Callable[[], None]:
    """Begin to write, from a copy of the tensors in the CPU's memory; called by all ranks.

    Returns:
        What waits for the end; it raises OSError if a rank could not write.
    """
    if "gloo" not in _groups:  # of its own, for it is used while training uses the others
        _groups["gloo"] = dist.new_group(backend="gloo")
    writer = SealingWriter(directory, seal)
    begun: Any = async_save(dict(tensors), storage_writer=writer, process_group=_groups["gloo"])

    def wait() -> None:
        with naming(directory):
            try:
                begun.result()
            except CheckpointException as error:
                first = _first(error)
                raise first if isinstance(first, OSError) else OSError(str(first)) from error

    return wait


def _first(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]


def shard_sizes(directory: Path) -> dict[str, TensorStorageMetadata]:
    """Read from a folder's index what is in it, by name."""
    return dict[str, Any](StrictReader(str(directory)).read_metadata().state_dict_metadata)


def read_shards(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole ones or this rank's shards; every rank reads by itself what it needs.

    Raises:
        PassError: they are not there as the index says.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(tensors, storage_reader=StrictReader(str(directory)), no_dist=True)
        except CheckpointException as error:  # no Exception, so nobody would catch it
            raise PassError(f"{directory} cannot be read: {_first(error)}; remove it") from error


class StrictReader(FileSystemReader):
    """Reads the index without running anything, and only files of the folder itself."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises PassError if the index is not one of tensors in this folder."""
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as stream:
                found = load_pickle(stream, ADMITTED, most=MOST_OPCODES)
            if not isinstance(found, Metadata) or found.storage_meta is None:
                raise Refused("something else")
            if not all(isinstance(about, TensorStorageMetadata) for about in found.state_dict_metadata.values()):
                raise Refused("more than tensors")
            if any("/" in info.relative_path for info in found.storage_data.values()):
                raise Refused("names of files elsewhere")
        except (Refused, AttributeError, TypeError) as error:
            raise PassError(f"{path} is no index of a save: it holds {error}; remove {path.parent}") from error
        found.storage_meta.load_id = self.load_id
        return found
