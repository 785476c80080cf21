"""Every file of BMCook's history is accepted: keys and values as they were, pruning as far as this tool has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.model_config import read_config
from sprunec.plan.plan import check_plan
from tests.bmcook.test_l0_units import FIRST, LATER
from tests.helpers.bmcook_files import CONFIG, write

LAST_NORM = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"
NINTH = "[pre]encoder.layers.9.ffn.layernorm_before_ffn:[pre]encoder.layers.9.ffn.layernorm_before_ffn"
TWO = {"ce_scale": 0, "mse_hidn_scale": 0, "mse_hidn_module": [LAST_NORM, NINTH], "mse_hidn_proj": False}
ONE = TWO | {"mse_hidn_module": [LAST_NORM]}
BARE = TWO | {"mse_hidn_module": ["encoder.output_layernorm", "abcd"]}
OFF = {"is_pruning": False, "pruning_mask_path": "prune_example.bin", "pruned_module": ["encoder.layers.0"]}
ANT = [f"self_attention.{part}.weight" for part in ("project_q", "project_k", "project_v", "attention_out")]
ANT = ["ffn.ffn.w_in.w.weight", "ffn.ffn.w_out.weight", *ANT]
QUIET = {"quantization": {"is_quant": False}, "MoEfication": {"is_moefy": False}}
MOE = {"quantization": {"is_quant": False}, "MoEfication": {"is_moefy": True, "first_FFN_module": ["layernorm"]}}
L0 = {
    "coarse-grained": {"train_mask": False, "coarse_mask": "results/2B.pt", "target_sparsity": 0.67},
    "fine-grained": {
        "train_mask": True,
        "coarse_mask": "results/2B.pt",
        "num_heads": 8,
        "dim_ff": 48,
        "target_num_heads": 3,
        "target_dimff": 20,
        "heads_mask": "results/heads.pt",
        "dimff_mask": "results/dims.pt",
        "prune_mode": "att",
    },
}
SPRUNE = {
    "main": {
        "criterion": "l0",
        "training_mask": ["num_heads"],
        "fixed_mask_path": "",
        "mask_mode": "train_mask",
        "target_mode": "sparsity",
        "iterational": False,
    },
    "target_mode": {"sparsity": 0.67, "dimension": 350},
    "iterational": {"interval": 100, "ratio": 0.1},
}


def pruning(method: str, **others: Any) -> dict[str, Any]:
    return {"is_pruning": True, "pruning_mask_path": "prune_example.bin", "mask_method": method, **others}


FILES: dict[str, dict[str, Any]] = {
    "only distillation": {"distillation": ONE | {"ce_scale": 1}},
    "bare module names": {"distillation": BARE},
    "nothing pruned": {"distillation": TWO, "pruning": OFF | {"mask_method": "m4n2_1d"}, **QUIET},
    "defaults": {"pruning": OFF | {"mask_method": "m4n2_1d/m4n2_2d/sprune", "pruned_module": ["[placehold]"]}},
    "null mask path": {"pruning": OFF | {"pruning_mask_path": None}, "quantization": {"is_quant": False}},
    "embedding": {"distillation": TWO, "pruning": pruning("m4n2_1d", pruned_module=["input_embedding"]), **QUIET},
    "first layer": {"pruning": pruning("m4n2_1d", pruned_module=["encoder.layers.0"]), **QUIET},
    "three parts": {"pruning": pruning("m4n2_1d", pruned_module=[*ANT[:2], "input_embedding"]), **QUIET},
    "columns too": {"pruning": pruning("m4n2_2d", pruned_module=ANT), **QUIET},
    "the guide's": {"distillation": TWO, "pruning": pruning("fine-grained", pruned_module=ANT), **QUIET},
    "sublayers": {"pruning": pruning("coarse-grained")},
    "structure": {"pruning": pruning("structure", pruned_module=ANT), **QUIET},
    "first keys": {"pruning": pruning("sprune", sprune=FIRST, pruned_module=["input_embedding"]), **QUIET},
    "first keys unused": {"pruning": pruning("m4n2_1d", sprune=FIRST, pruned_module=["input_embedding"])},
    "first keys off": {"pruning": OFF | {"mask_method": "sprune", "sprune": FIRST}, **QUIET},
    "later keys": {"pruning": pruning("sprune", sprune=LATER), **QUIET},
    "no MoEfication": {"distillation": ONE | {"mse_hidn_scale": 0.1}, "quantization": {"is_quant": False}},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "quantized": ({"pruning": OFF, "quantization": {"is_quant": True, "quantized_module": []}}, "is_quant is true"),
    "MoEfied": ({"distillation": TWO, "pruning": OFF, **MOE}, "is_moefy is true"),
}
OLD_CONFIG = {key: value for key, value in CONFIG.items() if key != "half"} | {
    "dropout_p": 0.0,
    "emb_init_mean": 0.0,
    "emb_init_std": 0.02,
    "pos_bias_type": "relative",
    "pos_init_mean": 0.0,
    "pos_init_std": 1.0,
    "norm_init_var": 1.0,
    "norm_bias": False,
    "norm_eps": 1e-06,
    "att_init_mean": 0.0,
    "att_init_std": 1.0,
    "att_bias": False,
    "att_mask_value": "-inf",
    "ffn_init_mean": 0.0,
    "ffn_init_std": 1.0,
    "ffn_bias": False,
    "ffn_activate_fn": "gated_gelu",
    "proj_init_mean": 0.0,
    "proj_init_std": 0.02,
    "proj_bias": False,
    "length_scale": True,
    "attn_scale": True,
    "half": True,
    "int8": False,
    "tied": True,
    "absolute_inner_segment": True,
    "mask_modules": [[False, False], [False, True], [True, True]],
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "l0_pruning.json", L0)
    write(tmp_path, "sprune.json", SPRUNE)
    write(tmp_path, "model.json", CONFIG | {"num_layers": 10})


def findings(folder: Path, content: dict[str, Any]) -> list[str]:
    path = write(folder, "bmcook.json", content)
    flags = Flags(model_config="model.json", load="dense.pt", data_bin_path="data", start_step=2000)
    return [str(each) for each in check_plan(path, flags=flags)[1] if each.severity == "error"]


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_accepted(tmp_path: Path, name: str) -> None:
    assert findings(tmp_path, FILES[name]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_tool_does_not_do_is_refused_for_that_alone(tmp_path: Path, name: str) -> None:
    content, words = REFUSED[name]
    (found,) = findings(tmp_path, content)
    assert words in found


def test_the_older_model_config_is_read_without_a_word(tmp_path: Path) -> None:
    config, found = read_config(str(write(tmp_path, "old.json", OLD_CONFIG)))
    assert [str(each) for each in found] == []
    assert config is not None
    assert [layer.heads for layer in config.layers] == [8, 8, 0]
    assert config.eps == 1e-06


@pytest.mark.parametrize(("key", "other"), [("ffn_activate_fn", "relu"), ("att_bias", True), ("tied", False)])
def test_an_older_config_of_another_model_is_refused(tmp_path: Path, key: str, other: Any) -> None:
    config, found = read_config(str(write(tmp_path, "old.json", OLD_CONFIG | {key: other})))
    assert config is None
    (wrong,) = [each for each in found if each.severity == "error"]
    assert wrong.pointer == f"/{key}"
    assert "CPM-Ant has" in wrong.message
