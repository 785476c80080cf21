"""Data sets of the package `datasets` that are on this machine: their files, and the texts in a column of them.

A data set is what `save_to_disk` has written, a directory of data files, or a name in the package's own cache. Nothing
is downloaded: what decides a run must be here. A script that comes with a data set is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sprunec.errors import InputError

PACKAGE, INSTALL = "datasets", "pip install 'sprunec[datasets]'"
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves, of several splits and of one
BUILDERS = {".csv": "csv", ".tsv": "csv", ".txt": "text", ".arrow": "arrow", ".parquet": "parquet"}  # else json


def find_dataset(path: Path, name: str, subset: str | None, split: str) -> tuple[Path, ...]:
    """List the files of a split, in their order.

    Args:
        path: where the directory would be.
        name: as the plan has it, which may be a name on the hub.
        subset: the configuration, where there are several.

    Raises:
        InputError: there is no such data set here, or no such split in it; or the package is not installed.
    """
    with _told(name, subset, split) as datasets:
        if any((path / each).is_file() for each in SAVED):
            saved = datasets.load_from_disk(str(path))
            files = [each["filename"] for each in _split(saved, split).cache_files]
        elif path.is_dir():
            builder = datasets.load_dataset_builder(str(path), subset)
            files = _split(builder.config.data_files, split)
        else:
            files = [each["filename"] for each in datasets.load_dataset(name, subset, split=split).cache_files]
        return tuple(map(Path, files))


def _split(found: Any, split: str) -> Any:
    """Take a split of several; a data set that was saved without any is one."""
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise ValueError(f"its splits are {', '.join(map(str, found))}")
    return found[split]


def read_rows(paths: Sequence[Path], column: str) -> Iterator[str]:
    """Yield the texts of a column, row by row; a row that has none is left out.

    Raises:
        InputError: there is no such column, or no text in it; or a file cannot be read.
    """
    for path in paths:
        kind, more = BUILDERS.get(path.suffix, "json"), {"sep": "\t"} if path.suffix == ".tsv" else {}
        with _told(str(path), None, "train") as datasets:
            rows = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **more)
            for number, row in enumerate(rows):
                if column not in row:
                    hint = f'its columns are {", ".join(row)}: name one by "column"'
                    raise InputError.at(path, f"has no column {column}", hint, "bad-data")
                text = row[column]
                if text is not None and not isinstance(text, str):
                    message = f"its column {column} has {type(text).__name__} in row {number} and no text"
                    raise InputError.at(path, message, 'name another by "column"', "bad-data")
                if text is not None:
                    yield text


@contextmanager
def _told(name: str, subset: str | None, split: str) -> Iterator[Any]:
    """Give the package, which stays off the network meanwhile; whatever it raises is one error."""
    try:
        import datasets
        from huggingface_hub import constants
    except ImportError as error:
        message = f'source "datasets" needs the package {PACKAGE}'
        raise InputError.in_option("/data/source", message, INSTALL, "missing-package") from error
    modules: tuple[Any, Any] = datasets.config, constants
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield datasets
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        what = " ".join([name, *([subset] if subset else []), split])
        why = (" ".join(str(error).split()) or type(error).__name__)[:400]
        hint = "give a directory that is here, or fetch it first by datasets.load_dataset"
        raise InputError.in_option("/data/path", f"the data set {what} cannot be read: {why}", hint) from error
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
