"""CPM-Live's model as its checkpoints name it, written from its description alone: what must load an emitted one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim_out, dim_in))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T / math.sqrt(self.weight.shape[1])


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Table(nn.Module):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids] / math.sqrt(self.weight.shape[1])


def group(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class LiveModel(nn.Module):
    """Built from the JSON alone: one width for all layers; `mask_modules` leaves sublayers out."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        d, eps = config["dim_model"], config["eps"]
        absent = config.get("mask_modules") or [[False, False]] * config["num_layers"]
        layers = nn.ModuleList(self.layer(*pair) for pair in absent)
        self.encoder = group(layers=layers, output_layernorm=Norm(d, eps))
        self.prompt_embedding = Table(config["prompt_types"] * config["prompt_length"], d)
        self.segment_embedding = Table(config["segment_types"], d)
        self.input_embedding = Table(config["vocab_size"], d)
        self.position_bias = nn.Module()
        rows = config["segment_types"] ** 2 + config["position_bias_num_buckets"]
        self.position_bias.relative_attention_bias = nn.Parameter(torch.zeros(rows, config["num_heads"]))

    def layer(self, no_attention: bool, no_feed_forward: bool) -> nn.Module:
        c, parts = self.config, {}
        d, inner, wide = c["dim_model"], c["num_heads"] * c["dim_head"], c["dim_ff"]
        if not no_attention:
            projections = {f"project_{name}": Linear(d, inner) for name in "qkv"}
            attention = group(**projections, attention_out=Linear(inner, d))
            parts["self_att"] = group(layernorm_before_attention=Norm(d, c["eps"]), self_attention=attention)
        if not no_feed_forward:
            inside = group(w_in=group(w_0=Linear(d, wide), w_1=Linear(d, wide)), w_out=Linear(wide, d))
            parts["ffn"] = group(layernorm_before_ffn=Norm(d, c["eps"]), ffn=inside)
        return group(**parts)

    def forward(self, input: Tensor, length: Tensor, context: Tensor, segment: Tensor, span: Tensor) -> Tensor:
        p = self.config["prompt_length"]
        h = torch.cat([self.prompt_embedding(input[:, :p]), self.input_embedding(input[:, p:])], 1)
        h = h + self.segment_embedding(segment)
        bias = torch.stack([self.bias(row) for row in segment])
        seen = torch.stack([visible(*row) for row in zip(length, context, span, strict=True)])
        for layer in self.encoder.layers:
            if hasattr(layer, "self_att"):
                normed = layer.self_att.layernorm_before_attention(h)
                h = h + self.attention(layer.self_att.self_attention, normed, bias, seen)
            if hasattr(layer, "ffn"):
                x, f = layer.ffn.layernorm_before_ffn(h), layer.ffn.ffn
                h = h + f.w_out(torch.nn.functional.gelu(f.w_in.w_0(x)) * f.w_in.w_1(x))
        h = self.encoder.output_layernorm(h)
        return h / math.sqrt(h.shape[-1]) @ self.input_embedding.weight.T

    def attention(self, part: Any, x: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
        heads, dim = self.config["num_heads"], self.config["dim_head"]
        q, k, v = (
            project(x).view(*x.shape[:2], heads, dim).transpose(1, 2)
            for project in (part.project_q, part.project_k, part.project_v)
        )
        score = q @ k.transpose(-1, -2) / math.sqrt(dim) + bias
        hidden = ~seen[:, None]
        share = score.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0.0)
        return part.attention_out((share @ v).transpose(1, 2).flatten(2))

    def bias(self, segment: Tensor) -> Tensor:
        table, n = self.position_bias.relative_attention_bias, len(segment)
        rows = torch.tensor([[self.row(i, j, segment) for j in range(n)] for i in range(n)])
        return table[rows].permute(2, 0, 1)

    def row(self, i: int, j: int, segment: Tensor) -> int:
        buckets, farthest = self.config["position_bias_num_buckets"], self.config["position_bias_max_distance"]
        a, b = int(segment[i]), int(segment[j])
        if a != b:
            return buckets + a * self.config["segment_types"] + b
        half, exact, far = buckets // 2, buckets // 4, abs(j - i)
        if far >= exact:
            steps = math.log(far / exact) / math.log(farthest / exact) * (half - exact)
            far = min(half - 1, exact + int(steps))
        return far + (half if j > i else 0)


def visible(length: Tensor, context: Tensor, span: Tensor) -> Tensor:
    n = len(context)
    return torch.tensor(
        [
            [
                bool((context[j] or (not context[i] and j <= i)) and span[i] == span[j] and max(i, j) < length)
                for j in range(n)
            ]
            for i in range(n)
        ]
    )


def load_live(directory: Path) -> LiveModel:
    """As the original loads: the class from the JSON, then a strict load of the `.pt`."""
    model = LiveModel(json.loads((directory / "config.json").read_text()))
    model.load_state_dict(torch.load(directory / "model.pt", weights_only=True), strict=True)
    return model.eval()
