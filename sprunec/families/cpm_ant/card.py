"""CPM-Ant's files and data as the rooms see them that know no family; see `families/cards.py`."""

from __future__ import annotations

from sprunec.families.cards import Card
from sprunec.families.cpm_ant.config import FAMILY, PAIR_TASK, TEXT_TASK, ModelConfig
from sprunec.families.cpm_ant.config_checks import PAIRS_HINT, STATES_HINT, config_findings, data_findings, older_key
from sprunec.families.cpm_ant.huggingface_names import head_names, native_keys, native_shapes, parts
from sprunec.families.cpm_ant.module_states import state_widths
from sprunec.families.cpm_ant.shapes import guess_config

ITEM_BYTES = 2  # as CPM-Live stores its models


def data_options(config: ModelConfig, source: str) -> dict[str, int]:
    """Give what decides which records fit, and which prompts and segments there are."""
    options = {"prompt_length": config.prompt_length} if source in ("pairs", "cpm-live") else {}
    types = {"prompt_types": config.prompt_types, "segment_types": config.segment_types}
    return options | (types if source == "cpm-live" else {})


def cache_bytes(config: ModelConfig, length: int = 1) -> int:
    """Count what keys and values of so many positions take at 16 bits, in the layers that have attention."""
    heads = (layer.counts for layer in config.layers)
    return length * sum(2 * ITEM_BYTES * each.get("head", 0) * each.get("dim_head", 0) for each in heads)


CARD = Card(
    name=FAMILY,
    title=lambda config: "CPM-Ant",
    code="sprunec.families.cpm_ant.family",
    own_code=True,
    code_release=lambda: "",
    config=ModelConfig.from_dict,
    schema="model",
    native_keys=native_keys,
    older_key=older_key,
    config_findings=config_findings,
    guess=guess_config,
    data_findings=data_findings,
    data_options=data_options,
    fixed_units=lambda config: {},
    parts=parts,
    native_shapes=native_shapes,
    sparse=lambda config: ("project_", "attention_out", "w_in", "w_out"),
    input_first=lambda config: (),
    training={},
    head_names=head_names,
    state_widths=state_widths,
    cache_bytes=cache_bytes,
    windows=lambda config: [None] * len(config.layers),
    item_bytes=lambda config: ITEM_BYTES,
    huggingface_options=lambda source: {"task": PAIR_TASK if source == "pairs" else TEXT_TASK},
    pairs_hint=PAIRS_HINT,
    states_hint=STATES_HINT,
)
