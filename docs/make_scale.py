"""Write the tables of docs/scale.md: what training costs a device, by the code that `run --dry-run` asks.

python docs/make_scale.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sprunec.families.base_config import ModelConfig
from sprunec.families.cpm_ant.config import ModelConfig as CPMAntConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.scale import Cost, Setting, cost

PAGE = Path(__file__).parent / "scale.md"
DEVICES = (1, 2, 4, 8, 16, 32, 64)
ROWS, COLUMNS = 4, 512
CPM_ANT = {  # dim_model, heads, dim_head, dim_ff, layers
    "300M": (1024, 16, 64, 2560, 24),
    "1B": (2048, 32, 64, 5120, 24),
    "3B": (2560, 32, 80, 6400, 36),
    "10B": (4096, 32, 128, 10240, 48),
}
LMS = {  # class, width, heads, their groups, dims of a head, dims of the feed-forward, layers, tokens
    "Llama 3.1 8B": ("llama", 4096, 32, 8, 128, 14336, 32, 128256),
    "Qwen3 32B": ("qwen3", 5120, 64, 8, 128, 25600, 64, 151936),
    "Llama 3.1 70B": ("llama", 8192, 64, 8, 128, 28672, 80, 128256),
}
KEYS = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
ENGINES = {"DDP": ("torch", False), "FSDP2": ("torch", True), "BMTrain": ("bmtrain", True)}


def configs() -> dict[str, ModelConfig]:
    """The models of the tables, by what they are called there."""
    names = ("dim_model", "num_heads", "dim_head", "dim_ff", "num_layers")
    types = {"vocab_size": 30720, "prompt_types": 32, "prompt_length": 32, "segment_types": 32}
    found: dict[str, ModelConfig] = {}
    for name, shape in CPM_ANT.items():
        found[f"CPM-Ant {name}"] = CPMAntConfig.from_dict(dict(zip(names, shape, strict=True)) | types)
    for name, sizes in LMS.items():
        document = dict(zip((*KEYS, "num_hidden_layers", "vocab_size"), sizes, strict=True))
        found[name] = TransformersConfig.from_source(document | {"tie_word_embeddings": False})
    return found


def table(value: Callable[[Cost], float], form: str) -> str:
    lines = ["| model | | " + " | ".join(map(str, DEVICES)) + " |", "|---|---|" + "---:|" * len(DEVICES)]
    for name, config in configs().items():
        for engine, (kind, full) in ENGINES.items():
            costs = [cost(config, setting(n, kind, full)) for n in DEVICES]
            label = f"{name} ({config.parameters() / 1e9:.2f} B)" if engine == "DDP" else ""
            lines.append(f"| {label} | {engine} | " + " | ".join(format(value(c) / 1e9, form) for c in costs) + " |")
    return "\n".join(lines)


def setting(devices: int, engine: str, full: bool) -> Setting:
    return Setting(devices, full, recompute=True, precision="bf16", sequences=ROWS, positions=COLUMNS, engine=engine)


def page() -> str:
    """The page with its tables as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in (("memory", table(lambda c: c.memory, ",.1f")), ("traffic", table(lambda c: c.traffic, ",.1f"))):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{made}\n\n\g<2>", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
