"""What training costs a device in memory and in traffic, before anything runs; needs no torch.

Per parameter, in fp32 (autocast multiplies in half precision, from whole fp32 weights): 4 bytes of weight, 4 of
gradient, 4 for each moment of the optimizer. DDP holds all of it on every device and adds the gradients there in a ring
(Patarasuk & Yuan 2009), which sends 2 (n - 1) / n of their bytes from each of n devices. FSDP2 holds one n-th of it
(ZeRO-3, Rajbhandari et al. 2020), gathers each block's weights before it works, forward and backward, and scatters its
gradients: 3 (n - 1) / n. What stands outside the blocks stays whole from forward to backward, and while a block works,
its weights, the next block's and its gradients are whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from sprunec.model.config import ModelConfig

FLOAT = 4
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Attributes:
        devices: processes, one a device.
        full: weights, gradients and moments in parts (FSDP2), not all on every device (DDP).
        rows, columns: of one part of a device's share of the batch.
    """

    devices: int = 1
    full: bool = False
    recompute: bool = False
    precision: str = "fp32"
    optimizer: str = "adamw"
    rows: int = 1
    columns: int = 512


@dataclass(frozen=True)
class Cost:
    """Of one device, in bytes; traffic is what it sends in one step."""

    weights: float
    gradients: float
    moments: float
    working: float
    activations: float
    traffic: float

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.moments + self.working + self.activations

    @property
    def state(self) -> float:
        """What is there between steps, and while the optimizer works."""
        return self.weights + self.gradients + self.moments


def cost(config: ModelConfig, setting: Setting) -> Cost:
    """The peak of a device's memory in a training step, and its traffic."""
    parameters, blocks = config.parameters(), [block_parameters(config, i) for i in range(config.num_layers)]
    n = setting.devices
    share, around = (n if setting.full else 1), (n - 1) / n
    moments = MOMENTS[setting.optimizer]
    weights, traffic = FLOAT * parameters / share, (3 if setting.full else 2) * around * FLOAT * parameters
    outside, largest = parameters - sum(blocks), max(blocks, default=0)
    working = FLOAT * (2 * outside + 3 * largest) if setting.full and n > 1 else 0.0
    return Cost(weights, weights, moments * weights, working, activations(config, setting), traffic)


def block_parameters(config: ModelConfig, index: int) -> int:
    """Of one block: four projections and a norm, three matrices and a norm, each only where they are."""
    layer, dim = config.layers[index], config.dim_model
    attention = 4 * dim * layer.heads * layer.dim_head + dim if layer.heads else 0
    return attention + (3 * dim * layer.dim_ff + dim if layer.dim_ff else 0)


def activations(config: ModelConfig, setting: Setting) -> float:
    """Bytes kept for the way back: inputs of products and norms, the attention's scores; and the logits three times."""
    width, cells = WIDTHS[setting.precision], setting.rows * setting.columns
    logits = 3.0 * FLOAT * cells * config.vocab_size
    kept = [_block_activations(config, i, cells, setting.columns, width) for i in range(config.num_layers)]
    if not setting.recompute:
        return logits + sum(kept)
    return logits + FLOAT * cells * config.dim_model * config.num_layers + max(kept, default=0.0)


def _block_activations(config: ModelConfig, index: int, cells: int, columns: int, width: int) -> float:
    layer, dim = config.layers[index], config.dim_model
    attention = cells * (2 * FLOAT * dim + width * (dim + 4 * layer.heads * layer.dim_head)) if layer.heads else 0
    scores = width * cells * columns * layer.heads * 2
    feed_forward = cells * (2 * FLOAT * dim + width * (dim + 5 * layer.dim_ff)) if layer.dim_ff else 0
    return float(attention + scores + feed_forward)


def shards_by_itself(parameters: int, memory: float) -> bool:
    """What `"sharding": "auto"` does on devices of so many bytes: parts, once all of it would fill half of one."""
    return 4 * FLOAT * parameters > memory / 2
