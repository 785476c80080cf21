"""Which modules of a CPM-Ant are given hidden states, and how wide these are; needs no torch."""

from __future__ import annotations

from sprunec.families.cards import Widths
from sprunec.families.cpm_ant.config import SUBLAYER_TENSORS, ModelConfig

# Modules that hold others of a sublayer, and the dims of what they are given and give, as in `SUBLAYER_TENSORS`.
_GROUPS = {
    "attention": {"self_att.self_attention": "D"},
    "feed_forward": {"ffn": "D", "ffn.ffn": "D", "ffn.ffn.w_in": "ID"},
}


def state_widths(config: ModelConfig) -> dict[str, Widths]:
    """Give the widths of first input and output of every module that is given hidden states, and is there.

    Those that only group others (`encoder`, `self_att`) are never called, so they see nothing.
    """
    width = config.dim_model
    found = {"encoder.output_layernorm": (width, width)}
    for index, layer in enumerate(config.layers):
        block = f"encoder.layers.{index}"
        found[block] = (width, width)
        for kind, inner in layer.inner.items():
            dims = {"D": width, "I": inner}
            modules = SUBLAYER_TENSORS[kind] | _GROUPS[kind] if inner else {}
            found |= {f"{block}.{name}": (dims[shape[-1]], dims[shape[0]]) for name, shape in modules.items()}
    return found
