"""A GGUF file of any size is written, and read again, in the memory of one tensor and 300 MB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 5632}
LAYERS, TOKENS = 16, 32_000
ROOM = 300e6
SCRIPT = """
import sys
from pathlib import Path

import gguf
import torch

from sprunec.checkpoint.writer import adopt_weights
from sprunec.families.base_config import everything
from sprunec.families.gguf.file_values import check_file
from sprunec.families.gguf.graph_fit import row_of
from sprunec.families.gguf.metadata import fields
from sprunec.families.gguf.written_tensors import file_tensors
from sprunec.families.model_directory import describe, open_model_tensors
from sprunec.formats.gguf import write
from sprunec.plan.export_formats import Emission
from tests.helpers.gguf_files import config_of


def peak():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


folder, kind = Path(sys.argv[1]), sys.argv[2]
config = config_of(folder / "model")
describe(folder / kind, config, everything(config))
adopt_weights(folder / "model", folder / kind)
state, before = open_model_tensors(folder / kind), peak()
write(Emission(folder / kind, folder / kind, config, {"gguf": {"type": kind}}, {}), folder / f"{kind}.gguf")
written, row = peak() - before, row_of(config)
file = folder / f"{kind}.gguf/model.gguf"
check_file(file, fields(config, row), file_tensors(config, row, state, kind))
print(written, peak() - before, file.stat().st_size)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import llamas

        made = tmp_path_factory.mktemp("large")
        document = llamas.llama("300mb") | SIZES | {"num_hidden_layers": LAYERS, "vocab_size": TOKENS}
        assert llamas.write_llama(made / "model", document | {"head_dim": 128}, llamas.SPARSE) > 1.5e9
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [("bf16", 1.0), ("q8_0", 34 / 64)])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's kernel for the peak")
def test_a_file_is_written_in_the_memory_of_one_tensor(folder: Path, kind: str, share: float) -> None:
    """Nothing in it grows with the number of tensors: of 16 GB the largest one, a table, takes 1 GB."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, kind], cwd=ROOT, capture_output=True, text=True, check=True
    )
    written, compared, size = map(int, done.stdout.split())
    largest = 2 * TOKENS * SIZES["hidden_size"]
    assert size > share * 1.7e9
    assert max(written, compared) < largest + ROOM, (written, compared)
