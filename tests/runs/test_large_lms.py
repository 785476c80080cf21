"""A language model goes through a run in the memory of two of its blocks, whatever all of them take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2560}
LAYERS, TOKENS = 24, 512
BLOCK = 2 * 1024**2 + 1024**2 + 3 * 1024 * 2560  # parameters, without its norms
ROOM = 330e6  # over an import of torch and of the model's class; a whole model takes more
IMPORT = "import torch; from transformers import LlamaForCausalLM; {}"
PEAK = "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import llamas

        made = tmp_path_factory.mktemp("large")
        document = llamas.llama("300mb") | SIZES | {"num_hidden_layers": LAYERS, "vocab_size": 2000}
        size = llamas.write_llama(made / "model", document)
        assert size > 2 * LAYERS * BLOCK > 8 * BLOCK + ROOM  # whole it breaks the bound, as it is stored, too
        yield made


def peaks(folder: Path, *passes: dict[str, Any]) -> dict[str, float]:
    """By pass, the most that the run's process takes, over a bare import."""
    import large_lms

    data = {"source": "python-docs", "tokenizer": "characters", "max_length": 128, "batch_size": 1}
    plan = {"name": "large", "model": {"path": "model"}, "data": data, "passes": [*passes]}
    (folder / "plan.json").write_text(json.dumps(plan))
    bare = subprocess.run([sys.executable, "-c", IMPORT.format(PEAK)], capture_output=True, text=True, check=True)
    told = folder / "passes.jsonl"
    told.unlink(missing_ok=True)
    command = [sys.executable, "-c", large_lms.RUN, folder / "plan.json", folder / "out", told]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    return {row["name"]: row["peak"] - 1024 * int(bare.stdout) for row in rows}


BY_WEIGHTS = {"criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 2304}}
ON_DATA = {"criterion": "reconstruction", "unit": "kv_group", "target": {"num_kv_groups": 6}}
REFITTED = {"batches": TOKENS // 128, "compensate": "least-squares"}
SEARCH = {"pass": "search", "units": ["kv_group", "dim_ff"], "batches": TOKENS // 128, "damage_batches": TOKENS // 128}
EMIT = {"pass": "emit", "formats": ["huggingface"]}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's kernel for the peak")
def test_no_pass_holds_a_whole_model(folder: Path) -> None:
    scored = {"pass": "score-mask", "budget": "per-layer"}
    found = peaks(folder, scored | BY_WEIGHTS, scored | ON_DATA | REFITTED, EMIT)
    kinds = [name.split("-", 1)[1] for name in found]
    assert kinds[1:4] == ["load", "verify-trace", "score-mask-dim_ff"] and kinds[-1] == "compare"
    assert {"score-mask-kv_group", "compensate", "compare-format-huggingface"} <= {*kinds}
    assert {name: peak for name, peak in found.items() if peak > 8 * BLOCK + ROOM} == {}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's kernel for the peak")
def test_no_search_holds_a_whole_model(folder: Path) -> None:
    search = SEARCH | {"target": {"parameters": LAYERS * BLOCK * 9 // 10}, "finalists": 2, "grid": {"dim_ff": [1280]}}
    found = peaks(folder, search, EMIT)
    assert {"score-choices-kv_group-dim_ff", "measure-finalists"} <= {name.split("-", 1)[1] for name in found}
    assert {name: peak for name, peak in found.items() if peak > 8 * BLOCK + ROOM} == {}
