"""What is timed to know what choices take, and what follows from the times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.errors import PassError
from sprunec.families.base_config import ModelConfig
from sprunec.families.cpm_ant.config import ModelConfig as OwnConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.passes.measuring.measure_latency import measured_table
from sprunec.passes.measuring.probes import ALONE, DENSE, MIXED, Probes
from sprunec.plan.files import read_latency_table
from sprunec.plan.plan import read_plan
from sprunec.plan.schema import validator
from sprunec.plan.search.choices import choices
from sprunec.plan.search.latency_table import LatencyTable, sublayers
from tests.helpers.causal_lms import CONFIGS
from tests.helpers.small_plans import MODEL, TINY, execute, plan, save_weights, write

UNITS = ("kv_group", "dim_ff", "layer")
ABOUT: dict[str, Any] = {"batch": 2, "length": 40, "prefill": True, "dtype": "float32", "device": "cpu", "threads": 1}


def llama(layers: int, **sizes: Any) -> TransformersConfig:
    source = {"model_type": "llama", **CONFIGS["llama"], **sizes, "num_hidden_layers": layers}
    return TransformersConfig.from_source(source)


def additive(config: ModelConfig, second: int = 2) -> float:
    """Of each layer 1, of attention 10 a group and `second` times that in the second one, of a dim 0.1; besides 100."""
    total = 100.0 + sum(bool(layer.counts) for layer in config.layers)
    for index, _, kept in sublayers(config):
        total += 10 * kept.get("kv_group", 0) * (second if index == 1 else 1) + 0.1 * kept.get("dim_ff", 0)
    return total


def solved(config: ModelConfig, probes: Probes) -> LatencyTable:
    base, entries = probes.entries([additive(probe.config) for probe in probes.models])
    return LatencyTable({"base": {"decode": base}, "sublayers": [{**e, "decode": e["seconds"]} for e in entries]})


@pytest.mark.parametrize("layers", [2, 3, 8])
def test_times_that_add_up_are_found_again(layers: int) -> None:
    config = llama(layers, layer_types=["full_attention", "sliding_attention", *["full_attention"] * (layers - 2)])
    config = TransformersConfig.from_source(config.document | {"sliding_window": 8})
    probes = Probes(config, choices(config, UNITS), 4)
    seconds = solved(config, probes).seconds()
    assert len(probes.kinds) == 2 and seconds(config) == pytest.approx(additive(config))
    for number in (DENSE, MIXED):
        assert seconds(probes.models[number].config) == pytest.approx(additive(probes.models[number].config))
    assert len(probes.models[ALONE].config.left) == 1
    absent = [probe for probe in probes.models if probe.layers and not probe.kept]
    assert all(any(layer.heads for layer in probe.config.layers) for probe in absent)


def test_of_large_blocks_some_are_timed_and_all_are_told() -> None:
    config = llama(40, hidden_size=2048, intermediate_size=8192)
    probes = Probes(config, choices(config, UNITS), 4)
    timed = probes.models[DENSE].config
    assert isinstance(timed, TransformersConfig) and 4 <= len(timed.left) < 10

    base, entries = probes.entries([additive(probe.config, second=1) for probe in probes.models])
    assert base == pytest.approx(100)
    assert {tuple(entry["layers"]) for entry in entries} == {tuple(range(40))}


@pytest.mark.parametrize("config", [llama(3), OwnConfig.from_dict(TINY)], ids=["llama", "cpm-ant"])
def test_a_table_is_made_of_the_models_that_users_open(config: ModelConfig, tmp_path: Path) -> None:
    told, wanted = list[Sequence[int]](), choices(config, UNITS, {"dim_ff": [24]})
    document = measured_table(config, wanted, ABOUT, lambda *done: told.append(done))
    validator("latency").validate(document)
    (tmp_path / "table.json").write_text(json.dumps(document))
    table = read_latency_table(tmp_path / "table.json")
    for phase in ("decode", "prefill"):
        whole = table.seconds(phase)(config)
        assert whole == pytest.approx(document["dense"][phase]) and whole > 0
        assert document["check"]["measured"][phase] > 0
    kept = [entry["kept"] for entry in document["sublayers"]]
    assert kept == list(map(dict, dict.fromkeys(tuple(sorted(c.kept.items())) for c in wanted if c.kept)))
    assert told[-1][0] == told[-1][1]


def test_a_model_of_one_layer_is_told() -> None:
    with pytest.raises(PassError, match="two layers with attention, at least"):
        measured_table(llama(1), choices(llama(1), UNITS), ABOUT, lambda *done: None)


def test_a_plan_writes_a_table(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    wanted = {"units": ["head", "dim_ff"], "length": 40, "save_table": "table.json"}
    content = plan({"pass": "measure-latency", **wanted}, model={"config": MODEL, "checkpoint": "weights.pt"})
    content = {key: value for key, value in content.items() if key not in ("data", "evaluate")}
    (node,) = (n for n in lower(read_plan(write(tmp_path, content))).nodes if n.pass_ == "measure-latency")
    config = OwnConfig.from_dict(MODEL)
    assert node.digest and node.needs.memory["model"] == 4 * config.parameters()
    report = execute(content, tmp_path)
    (metrics,) = (each["metrics"] for each in report["passes"] if each["pass"] == "measure-latency")
    table = read_latency_table(tmp_path / "table.json")
    assert 1000 * table.seconds()(config) == pytest.approx(metrics["milliseconds"])
    assert table.document["dtype"] == "float32" and metrics["error"] >= 0 and report["status"] == "done"
