"""The config of a DeciLM, which `AutoConfig.from_pretrained(directory, trust_remote_code=True)` reads by this file.

The file is the same for every model of the format `deci`, and stands alone beside its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig


class Section(dict[str, Any]):
    """A mapping whose entries are attributes too; one that is not there is no attribute, not even an empty one."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(PretrainedConfig):
    """A Llama whose layers may lack a sublayer, and differ in key-value heads and feed-forward width.

    Args:
        block_configs: by layer, `attention` with `n_heads_in_group`, and `ffn` with `ffn_mult` or `intermediate_size`;
            one whose `no_op` is true is absent.
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Iterable[Mapping[str, Any]] = (), **rest: Any) -> None:
        self.block_configs = [
            Section({name: Section(section) for name, section in block.items()}) for block in block_configs
        ]
        rest.pop("rope_scaling", None)  # `rope_parameters` says all of it
        super().__init__(**rest)
        if not hasattr(PretrainedConfig, "rope_scaling"):  # releases before 5 ask for it
            parameters = dict(getattr(self, "rope_parameters", None) or {})
            self.rope_scaling = parameters if parameters.get("rope_type", "default") != "default" else None
