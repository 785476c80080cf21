"""DeciLMs as vLLM's loader takes them, in plain torch over a directory's raw JSON and tensors; and such directories.

The loader's residual is carried beside the hidden states and added where the next norm is, as its fused norm does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprunec.checkpoint.reader import open_tensors
from sprunec.families.base_config import everything
from sprunec.families.cards import native
from sprunec.families.huggingface.decilm_files import write
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import save_model
from sprunec.models.meta_models import traced_shape
from sprunec.plan.export_formats import Emission
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import Kept


def width_of(section: dict[str, Any], hidden: int) -> int:
    """What the loader makes of a feed-forward's section: a factor goes before a number."""
    if "ffn_mult" not in section:
        return int(section["intermediate_size"])
    size = int(2 * section["ffn_mult"] * hidden / 3)
    return size if size % 256 == 0 else size + 256 - size % 256


class Loaded:
    """A directory in float64; every tensor must be one that its blocks ask for, and be of the size they say."""

    def __init__(self, directory: Path) -> None:
        self.about: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.state = {name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()}
        self.asked: set[str] = set()

    def take(self, name: str, *shape: int) -> Tensor:
        assert self.state[name].shape == shape, (name, self.state[name].shape, shape)
        self.asked.add(name)
        return self.state[name]

    def norm(self, name: str, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        total = hidden if residual is None else hidden + residual
        weight = self.take(f"{name}.weight", self.about["hidden_size"])
        return weight * total * (total.pow(2).mean(-1, keepdim=True) + self.about["rms_norm_eps"]).rsqrt(), total

    def rotated(self, tensor: Tensor) -> Tensor:
        """Turn (heads, n, E), the first half of the dims against the second."""
        width = tensor.size(-1)
        powers = torch.arange(0, width, 2, dtype=torch.double) / width
        angles = torch.arange(tensor.size(1))[:, None] / self.about["rope_parameters"]["rope_theta"] ** powers
        first, second = tensor.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attention(self, name: str, hidden: Tensor, shared: int) -> Tensor:
        width, heads, dims = (self.about[key] for key in ("hidden_size", "num_attention_heads", "head_dim"))
        sizes = {"q": heads, "k": heads // shared, "v": heads // shared}
        q, k, v = (
            F.linear(hidden, self.take(f"{name}.{kind}_proj.weight", size * dims, width)).view(-1, size, dims)
            for kind, size in sizes.items()
        )
        keys, values = (each.transpose(0, 1).repeat_interleave(shared, 0) for each in (k, v))
        scores = self.rotated(q.transpose(0, 1)) @ self.rotated(keys).mT / dims**0.5
        seen = torch.ones(hidden.size(0), hidden.size(0), dtype=torch.bool).tril()
        context = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values
        return F.linear(context.transpose(0, 1).flatten(1), self.take(f"{name}.o_proj.weight", width, heads * dims))

    def feed_forward(self, name: str, hidden: Tensor, inner: int) -> Tensor:
        width = self.about["hidden_size"]
        gate, up = (self.take(f"{name}.{kind}_proj.weight", inner, width) for kind in ("gate", "up"))
        return F.linear(
            F.silu(F.linear(hidden, gate)) * F.linear(hidden, up), self.take(f"{name}.down_proj.weight", width, inner)
        )

    def logits(self, ids: Tensor) -> Tensor:
        """Ids (n,) -> (n, V)."""
        vocabulary, width = self.about["vocab_size"], self.about["hidden_size"]
        table, residual = self.take("model.embed_tokens.weight", vocabulary, width), None
        hidden = table[ids]
        assert len(self.about["block_configs"]) == self.about["num_hidden_layers"]
        for index, block in enumerate(self.about["block_configs"]):
            layer, attention, ffn = f"model.layers.{index}", block["attention"], block["ffn"]
            if not attention["no_op"]:
                hidden, residual = self.norm(f"{layer}.input_layernorm", hidden, residual)
                hidden = self.attention(f"{layer}.self_attn", hidden, attention["n_heads_in_group"])
            if not ffn["no_op"]:
                assert residual is not None, "the loader's norm gives no residual where there was none"
                hidden, residual = self.norm(f"{layer}.post_attention_layernorm", hidden, residual)
                hidden = self.feed_forward(f"{layer}.mlp", hidden, width_of(ffn, width))
        hidden, _ = self.norm("model.norm", hidden, residual)
        head = table if self.about["tie_word_embeddings"] else self.take("lm_head.weight", vocabulary, width)
        assert self.asked == set(self.state), "tensors that the loader does not know"
        return F.linear(hidden, head)


def exported(model: Any, kept: Kept, folder: Path) -> Path:
    """What `deci` writes of a model of transformers with only this left."""
    model.save_pretrained(folder / "dense")
    config = TransformersConfig.from_dict(native(json.loads((folder / "dense/config.json").read_text())))
    tensors, whole = open_tensors(folder / "dense"), everything(config)
    state = {name: tensors.copy(name) for name in config.tensors()}
    small = config.cut(whole, kept)
    save_model(folder / "small", small, kept, make_recipe(traced_shape(config), kept.inside(whole)).cut(state))
    write(Emission(folder / "small", folder / "dense", small, {}, {}), folder / "deci")
    return folder / "deci"


def masked_logits(dense: Path, kept: Kept, ids: Tensor) -> Tensor:
    """What the class says in float64, where what is not kept gives zeros; ids (n,) -> (n, V)."""
    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).double()
    width = model.config.head_dim
    for layer, left in zip(model.model.layers, kept, strict=True):
        heads = torch.zeros(model.config.num_attention_heads).double()
        heads[list(left.get("head", ()))] = 1.0
        dims = torch.zeros(model.config.intermediate_size).double()
        dims[list(left.get("dim_ff", ()))] = 1.0
        layer.self_attn.o_proj.weight.data *= heads.repeat_interleave(width)
        layer.mlp.down_proj.weight.data *= dims
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits
