"""How a family of `transformers` is described: where its tensors are, and which keys of a config count units.

Letters in sizes are a layer's query heads H, key-value groups G, dims of a head E and feed-forward dims F, and the
model's width D, tokens V and positions P. "HE+2GE D" is a matrix whose rows are H·E queries, then G·E keys and as many
values. A name that ends in `?key` is there only where that key of the config is true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Sizes = Mapping[str, str]
UNITS = {"H": "head", "G": "kv_group", "E": "dim_head", "F": "dim_ff"}
KEYS = {
    "L": ("num_hidden_layers", "n_layer"),
    "D": ("hidden_size", "n_embd"),
    "H": ("num_attention_heads", "n_head"),
    "G": ("num_key_value_heads", "num_kv_heads"),
    "E": ("head_dim",),
    "F": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "V": ("vocab_size",),
    "P": ("max_position_embeddings", "n_positions"),
}


@dataclass(frozen=True)
class Layout:
    """What is to be known of a family without torch.

    Attributes:
        title: what people call it.
        blocks: the module list of its blocks.
        attention, feed_forward, both: a block's tensors by sublayer, and those that the two share.
        tables: tensors outside of the blocks; the first one is the embedding.
        head: the one of them that a tied model lacks.
        keys: by letter, the keys of a config that may say it; the first one found does.
        defaults: of keys that a config may leave out.
        by_layer: keys whose value is a list with an entry a layer.
        by_depth: keys whose value grows with the root of the number of layers, as a residual's factor does.
        fixed: units that cannot be cut, and why.
        input_first: matrices of a block that are (input, output), as Conv1D's are.
        cache: how many numbers a token's keys and values are, as a sum of letters.
        needs: values of keys without which a model is another one, and has no card.
        uneven_heads: whether the class can have heads of another width than D / H.
        heads_divide_width: whether it refuses a number of heads that D is no multiple of.
        inputs_first: whether the matrices of its blocks have a row an input, and not one an output.
    """

    title: str
    blocks: str
    attention: Sizes
    feed_forward: Sizes
    tables: Sizes
    both: Sizes = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    by_layer: tuple[str, ...] = ("layer_types",)
    by_depth: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    input_first: tuple[str, ...] = ()
    cache: str = "2GE"
    needs: Mapping[str, Any] = field(default_factory=dict)
    uneven_heads: bool = True
    heads_divide_width: bool = False
    head: str = "lm_head.weight"
    inputs_first: bool = False

    @property
    def uneven_dims(self) -> bool:
        """Whether the class can have another number of feed-forward dims than 4 D: its config has a key for it."""
        return self.keys.get("F") != ()

    def but(self, title: str, **more: Any) -> Layout:
        """Make a relative's layout: mappings are added to those here, where None takes an entry away."""
        merged = {name: {**getattr(self, name), **value} for name, value in more.items() if isinstance(value, dict)}
        left = {name: {key: v for key, v in value.items() if v is not None} for name, value in merged.items()}
        return replace(self, title=title, **(more | left))


def read_sizes(layout: Layout, document: Mapping[str, Any]) -> dict[str, int]:
    """Read sizes by letter; where a config does not say them: as many groups as heads, dims D / H, 4 D feed-forward.

    Raises:
        ValueError: it lacks another one, or a size is no positive number.
    """
    values = {**layout.defaults, **document}
    found: dict[str, int] = {}
    for letter, keys in {**KEYS, **layout.keys}.items():
        value = next((values[key] for key in keys if values.get(key) is not None), None)
        if value is None and letter == "E":
            value = found["D"] // found["H"]
        elif value is None and letter in "GF":
            value = found["H"] if letter == "G" else 4 * found["D"]
        if (value is None and letter == "P") or (letter == "E" and "E" not in "".join(layout.attention.values())):
            continue  # where positions have no table, or a head's dims are of several kinds
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"this is {layout.title}'s config, and its {keys[0]} is {json.dumps(value)}")
        found[letter] = value
    return found
