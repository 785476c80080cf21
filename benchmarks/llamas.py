"""Directories as transformers writes them, of Llama's kind and of any size, with weights that nobody trained.

    python benchmarks/llamas.py FOLDER --shape 8b --sparse

Texts for them are told by their characters ("tokenizer": "characters"), whose numbers are small; so of a sparse model's
embedding all of the first rows are drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from synthetic import write_shards

from sprunec.families.huggingface.transformers_config import TransformersConfig

SPARSE = 16  # one row in so many is there
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SHAPES = {  # and of tokens
    "300mb": (1024, 8, 16, 8, 2816, 16_000),
    "3gb": (3072, 13, 24, 8, 8192, 32_000),
    "8b": (4096, 32, 32, 8, 14_336, 128_256),
    "70b": (8192, 80, 64, 8, 28_672, 128_256),
}
REST: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
}


def llama(shape: str) -> dict[str, Any]:
    """Give the config.json of a shape."""
    *sizes, tokens = SHAPES[shape]
    found = REST | dict(zip(SIZES, sizes, strict=True)) | {"vocab_size": tokens}
    return dict(sorted((found | {"head_dim": sizes[0] // sizes[2]}).items()))


def write_llama(folder: Path, document: dict[str, Any], one_in: int | None = 1) -> int:
    """Write its directory -> bytes of weights.

    Args:
        one_in: of so many rows one is drawn, all for 1; None: there are no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document, indent=2))
    if one_in is None:
        return 0
    shapes = TransformersConfig.from_source(document).tensors()
    return write_shards(folder, shapes, dtype="BF16", std=lambda name: document["initializer_range"], one_in=one_in)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="3gb")
    parser.add_argument(
        "--sparse",
        type=int,
        nargs="?",
        const=SPARSE,
        default=1,
        metavar="N",
        help="of every matrix one row in N, by default 16; 0: none",
    )
    parser.add_argument("--config-only", action="store_true", help="no weights")
    options = parser.parse_args()
    one_in = None if options.config_only else options.sparse
    size = write_llama(options.folder, llama(options.shape), one_in)
    print(f"{options.folder}: {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
