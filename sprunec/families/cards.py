"""What a family says of its files and data, for the rooms that know none; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.errors import Diagnostic
from sprunec.families.base_config import ModelConfig

MOST_LAYERS = 4096  # as the schemas have it
FAMILIES = {  # by a config's `family`, the module of its card
    "cpm-ant": "sprunec.families.cpm_ant.card",
    "huggingface": "sprunec.families.huggingface.transformers_card",
}
DEFAULT = "cpm-ant"  # of a config that names no family
Widths = tuple[int, int]  # of what a module is given first, and of what it gives


@dataclass(frozen=True)
class Part:
    """Where a tensor of a model is in a file: rows `first` to `last` of `name` (None: all of it), times `factor`."""

    name: str
    factor: float = 1.0
    rows: tuple[int, int] | None = None

    def shape(self, whole: Shape) -> Shape:
        """Give the part's shape, of a tensor of shape `whole`; rows that the tensor lacks are not there."""
        if self.rows is None or not whole:
            return whole
        first, last = (min(row, whole[0]) for row in self.rows)
        return (last - first, *whole[1:])


@dataclass(frozen=True)
class Card:
    """A family's files and data; the module that `FAMILIES` names has it as `CARD`.

    Attributes:
        title: what people call the family of a config's model.
        code: the module that has its `FAMILY`, see `families/base.py`.
        own_code: whether all of its code is in this package, so that a model.py can be made of it.
        code_release: the installed release of what has its code else; empty where there is none.
        config: reads a config in its own keys.
        schema: the one of these keys; empty where a library decides what they mean.
        native_keys: translates a Hugging Face config into them; raises ValueError for another family's.
        older_key: of a key that the schema lacks, how its value contradicts the family; "" where it does not, None for
            no such key.
        config_findings: what disagrees in a config that its schema has nothing against, and in what it leaves to the
            given defaults; pointers are the config's.
        guess: the config that a bare checkpoint's shapes tell; raises InputError.
        data_findings: what a plan's `data` needs and the model lacks; pointers are the plan's.
        data_options: what of the config decides how data of a source is read.
        fixed_units: units that a model of this config cannot lose, and why.
        parts: by tensor, where it is in a file with tensors of these names.
        native_shapes: a file's shapes by the model's names; what is no part of the model keeps its own.
        sparse: parts of the names of the tensors that `sparsify` takes where a plan names none: linears in blocks.
        input_first: ends of the names of matrices whose first dim is the input; of all others it is the second.
        training: the training options whose defaults are not the schema's, by name.
        head_names: the names of a file's head and of its embedding; None where it has no head.
        state_widths: of every module that is given hidden states, and is there.
        cache_bytes: of the keys and values of so many tokens, in the type that the config names, else in one of 16
            bits; None where that is not known.
        windows: by layer, how many positions a token sees at most; None: all of them.
        item_bytes: of a stored number, by the type that the config names, else of 16 bits.
        huggingface_options: by the source of the data, what else decides how the model is written for transformers.
        pairs_hint, states_hint: how a plan pairs states, and names modules.
    """

    name: str
    title: Callable[[Any], str]
    code: str
    own_code: bool
    code_release: Callable[[], str]
    config: Callable[[Mapping[str, Any]], ModelConfig]
    schema: str
    native_keys: Callable[[Mapping[str, Any]], dict[str, Any]]
    older_key: Callable[[str, Any], str | None]
    config_findings: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[Diagnostic]]
    guess: Callable[[Mapping[str, Shape], Path], ModelConfig]
    data_findings: Callable[[Any, Mapping[str, Any]], Iterator[Diagnostic]]
    data_options: Callable[[Any, str], dict[str, int]]
    fixed_units: Callable[[Any], Mapping[str, str]]
    parts: Callable[[Any, Collection[str]], dict[str, Part]]
    native_shapes: Callable[[Any, Mapping[str, Shape]], dict[str, Shape]]
    sparse: Callable[[Any], tuple[str, ...]]
    input_first: Callable[[Any], tuple[str, ...]]
    training: Mapping[str, Any]
    head_names: Callable[[Collection[str]], tuple[str, str] | None]
    state_widths: Callable[[Any], dict[str, Widths]]
    cache_bytes: Callable[..., int | None]
    windows: Callable[[Any], Sequence[int | None]]
    item_bytes: Callable[[Any], int]
    huggingface_options: Callable[[str], dict[str, Any]]
    pairs_hint: str
    states_hint: str


def card(family: str = DEFAULT) -> Card:
    """Give a family's card.

    Raises:
        KeyError: there is no such family.
    """
    found: Card = import_module(FAMILIES[family]).CARD
    return found


def native(document: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a Hugging Face config into the keys of the family whose it is.

    Raises:
        ValueError: it is no known family's; says whose.
    """
    why = ValueError()
    for name in FAMILIES:
        try:
            return {"family": name} | card(name).native_keys(document)
        except ValueError as error:
            why = error
    raise why


def card_of(config: ModelConfig | None) -> Card:
    """Give the card of a config's family; of the one that a config is taken for, where there is none."""
    return card(DEFAULT if config is None else config.family)


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read a config in its family's own keys."""
    return card(data.get("family", DEFAULT)).config(data)
