"""The rows of llama.cpp's architectures, held against the package's own names and against the families' tensors."""

from __future__ import annotations

import gguf
import pytest

from sprunec.families.gguf.architecture import SIZES, Architecture
from sprunec.families.gguf.architectures import ARCHITECTURES
from sprunec.families.huggingface.model_types import LAYOUTS

NAMES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}


def label(row: Architecture) -> str:
    return f"{row.name}-{row.model_type}"


@pytest.mark.parametrize("row", ARCHITECTURES, ids=label)
def test_names_are_those_of_the_package(row: Architecture) -> None:
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[NAMES[row.name]]}
    assert {f"blk.{{bid}}.{module.name}" for module in row.block.values()} <= known
    optional = {"output"} if row.tied else set()
    assert {module.name for module in row.tables.values()} - optional <= known


@pytest.mark.parametrize("row", ARCHITECTURES, ids=label)
def test_every_module_of_the_family_has_a_name(row: Architecture) -> None:
    layout = LAYOUTS[row.model_type]
    tensors = [*layout.attention, *layout.feed_forward, *layout.both]
    assert {name.rpartition(".")[0] for name in tensors if "?" not in name} == set(row.block)
    assert {name.rpartition(".")[0] for name in layout.tables} == set(row.tables)
    names = [module.name for module in (*row.block.values(), *row.tables.values())]
    assert len(names) == len(set(names)), "no two modules share a name, so that a file can be read, too"


@pytest.mark.parametrize("row", ARCHITECTURES, ids=label)
def test_keys_are_those_of_the_package(row: Architecture) -> None:
    keys = {
        value
        for group in vars(gguf.Keys).values()
        for value in (vars(group) if isinstance(group, type) else {}).values()
        if isinstance(value, str)
    }
    assert {f"{{arch}}.{key}" for key in (*SIZES, *row.numbers)} <= keys
