"""A table of seconds: what it says of models, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sprunec.errors import InputError
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.files import read_latency_table
from sprunec.plan.search.choices import Choice, choices, chosen
from sprunec.plan.search.costs import costs
from sprunec.plan.search.latency_table import LatencyTable
from tests.helpers.causal_lms import CONFIGS

CONFIG = TransformersConfig.from_source({"model_type": "llama", **CONFIGS["llama"]})
ATTENTION = {"kv_group": 2, "head": 6, "dim_head": 10}
TABLE: dict[str, Any] = {
    "device": "cpu: a processor", "dtype": "float32", "threads": 1, "batch": 1, "length": 64,
    "base": {"decode": 3.0, "prefill": 30.0},
    "sublayers": [
        {"sublayer": "attention", "layers": [0, 1], "kept": ATTENTION, "decode": 2.0, "prefill": 20.0},
        {"sublayer": "attention", "layers": [0, 1], "kept": ATTENTION | {"kv_group": 1, "head": 3}, "decode": 1.5,
         "prefill": 15.0},
        {"sublayer": "feed_forward", "layers": [0, 1], "kept": {"dim_ff": 56}, "decode": 4.0, "prefill": 40.0},
        {"sublayer": "feed_forward", "layers": [0], "kept": {"dim_ff": 24}, "decode": 2.0, "prefill": 20.0},
    ],
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps(TABLE | changes))
    return path


def test_seconds_add_up_and_are_costs_of_choices(tmp_path: Path) -> None:
    table = read_latency_table(written(tmp_path))
    small = chosen(CONFIG, [Choice(0, "feed_forward", {"dim_ff": 24}), Choice(1, "attention", {})])
    assert table.seconds()(CONFIG) == 3 + 2 * (2 + 4)
    assert table.seconds()(small) == 3 + (2 + 2) + (0 + 4)
    assert table.seconds("prefill")(small) == 110
    found = [*choices(CONFIG, ()), Choice(0, "feed_forward", {"dim_ff": 24}), Choice(1, "attention", {})]
    assert costs(CONFIG, found, table.seconds()).each == (2, 4, 2, 4, 2, 0)


def test_what_lies_between_two_is_on_their_line() -> None:
    seconds = LatencyTable(TABLE).seconds()
    between = chosen(CONFIG, [Choice(0, "feed_forward", {"dim_ff": 40})])
    assert seconds(between) == seconds(CONFIG) - 1


@pytest.mark.parametrize(
    "choice", [Choice(1, "feed_forward", {"dim_ff": 40}), Choice(0, "feed_forward", {"dim_ff": 8})]
)
def test_what_is_not_there_is_told(choice: Choice, tmp_path: Path) -> None:
    seconds = read_latency_table(written(tmp_path)).seconds()
    words = f"no feed-forward of layer {choice.layer} with {choice.kept['dim_ff']} feed-forward dims"
    with pytest.raises(InputError, match=f"table.json.*{words}; measure it again"):
        seconds(chosen(CONFIG, [choice]))


def test_a_file_that_is_no_table_is_told_with_its_line(tmp_path: Path) -> None:
    baseless = tmp_path / "baseless.json"
    baseless.write_text(json.dumps({key: value for key, value in TABLE.items() if key != "base"}))
    with pytest.raises(InputError, match=r"table\.json:1:.* /batch: .*0 is below 1"):
        read_latency_table(written(tmp_path, batch=0))
    with pytest.raises(InputError, match='"base" is missing'):
        read_latency_table(baseless)
    with pytest.raises(InputError, match="this table has no prefill, only decode"):
        LatencyTable(TABLE | {"base": {"decode": 1.0}}).seconds("prefill")
