"""Texts in a column of Parquet tables, read a few rows at a time by the package `pyarrow`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprunec.errors import InputError, is_disk

PACKAGE, INSTALL = "pyarrow", "pip install 'sprunec[parquet]'"
ROWS = 1024


def read_column(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of a column, row by row; a row that has none is left out.

    Raises:
        InputError: it is no whole table, has no such column or no text in it, or the package is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        message = f"Parquet tables need the package {PACKAGE}"
        raise InputError.in_option("/data/source", message, INSTALL, "missing-package") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_column(path, table.schema_arrow, column)
            for batch in table.iter_batches(ROWS, columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except FileNotFoundError:
        raise InputError.at(path, "there is no such file", "check the path", "missing-file") from None
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # a string that is not UTF-8, too
        if is_disk(error):
            raise InputError.of_disk(path, error) from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError.at(path, f"cannot be read as a Parquet table: {why}", "copy or download it again") from error


def _check_column(path: Path, schema: Any, column: str) -> None:
    """Raises InputError where a table's schema has no such column, or one of something else."""
    import pyarrow

    if column not in schema.names:
        names = ", ".join(schema.names[:8]) + (f" and {len(schema.names) - 8} more" if len(schema.names) > 8 else "")
        hint = f'its columns are {names}: name one by "column"'
        raise InputError.at(path, f"has no column {column}", hint, "bad-data")
    kind = schema.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise InputError.at(path, f"its column {column} has {kind} and no text", 'name another by "column"', "bad-data")
