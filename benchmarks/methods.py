"""What the quality benchmark compares: corpora, targets, budgets of tokens, and methods, all as native plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONFIG = {
    "vocab_size": 128,
    "dim_model": 96,
    "num_heads": 8,
    "dim_head": 12,
    "dim_ff": 256,
    "num_layers": 6,
    "position_bias_num_buckets": 32,
    "position_bias_max_distance": 128,
    "prompt_types": 3,
    "prompt_length": 4,
    "segment_types": 3,
}
TRAINING = {"learning_rate": 0.02, "weight_decay": 0.1}
DENSE_STEPS, DENSE_STEPS_OF_TEXT = 1500, 4000  # of python-docs, and of other texts, which are larger
DENSE_ROWS, ROWS, LENGTH = 16, 8, 132
STEPS = {"short": 500, "long": 3000}
LOOK, REFIT = 8, 20  # batches that a score looks at, and a refit
HELD_OUT = 50_000

Pass = dict[str, Any]
Stage = tuple[Any, Mapping[str, Any]]

# By name, the stages of a cut: the units, and the target of each. `guide` has the ratios of BMCook's guide, heads to a
# quarter and dims to a half; `staged` cuts one after the other, as it does; `joint` asks for the size of `guide` only;
# `dims`, its half of the dims, is what torch-pruning can do, too.
TARGETS: dict[str, tuple[Stage, ...]] = {
    "guide": ((["head", "dim_ff"], {"num_heads": 2, "dim_ff": 128}),),
    "staged": (("head", {"num_heads": 2}), ("dim_ff", {"dim_ff": 128})),
    "20%": ((["head", "dim_ff"], {"sparsity": 0.2}),),
    "50%": ((["head", "dim_ff"], {"sparsity": 0.5}),),
    "layers": (("layer", {"sparsity": 1 / 3}),),
    "joint": ((["layer", "head", "dim_ff"], {"parameters": 291_688}),),
    "dims": (("dim_ff", {"dim_ff": 128}),),
}


@dataclass(frozen=True)
class Method:
    """How a cut is made.

    Attributes:
        criterion: of `score-mask`; for `learned` ones, of what the gates start from.
        peer: another project's pruner chooses; what it says is loaded as a mask.
        mask_share: of a stage's steps, how many train its mask; the others fine-tune.
        options: more of the pass that chooses the mask.
        tuning: more of the pass that fine-tunes.
    """

    criterion: str | None = None
    learned: bool = False
    peer: bool = False
    mask_share: float = 0.1
    options: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None

    def takes(self, target: str) -> bool:
        return not self.peer or target == "dims"

    def passes(self, target: str, steps: int, mask: Path | None = None) -> list[list[Pass]]:
        """The passes of each stage, all stages together worth `steps` training steps, looks at the data counted.

        Args:
            mask: what a peer has chosen.
        """
        stages = TARGETS[target]
        return [self._stage(unit, aim, steps // len(stages), mask) for unit, aim in stages]

    def _stage(self, unit: Any, aim: Mapping[str, Any], steps: int, mask: Path | None) -> list[Pass]:
        cut: Pass = {"unit": unit, "target": dict(aim), **(self.options or {})}
        if self.criterion is not None:
            cut["criterion"] = self.criterion
        looked = LOOK * (self.learned or self.criterion not in ("random", "magnitude"))
        looked += REFIT if cut.get("compensate") else 0
        if self.peer:
            return [{"pass": "load-mask", "path": str(mask), **(self.options or {})}, self._tune(steps - looked)]
        if not self.learned:
            return [{"pass": "score-mask", **cut}, self._tune(steps - looked)]
        learning = round(self.mask_share * (steps - looked))
        cut = {"pass": "train-mask", "steps": learning, **cut}
        return [cut, self._tune(steps - looked - learning)]

    def _tune(self, steps: int) -> Pass:
        return {"pass": "finetune", "steps": steps, **(self.tuning or {})}


METHODS: dict[str, Method] = {
    name: Method(name) for name in ("random", "magnitude", "taylor", "activation", "reconstruction")
} | {"torch-pruning": Method(peer=True), "train-mask": Method(learned=True)}

# By name, options of all methods alike.
EXTRAS: dict[str, Callable[[Method], Method]] = {
    "per-layer": lambda method: replace(method, options={**(method.options or {}), "budget": "per-layer"}),
    "refit": lambda method: replace(method, options={**(method.options or {}), "compensate": "least-squares"}),
}


def dense_plan(corpus: str) -> dict[str, Any]:
    steps = DENSE_STEPS if corpus == "python-docs" else DENSE_STEPS_OF_TEXT
    return {
        "name": "dense",
        "seed": 1,
        "model": {"config": CONFIG},
        "data": data(corpus, DENSE_ROWS),
        "training": TRAINING,
        "passes": [{"pass": "train", "steps": steps}, {"pass": "emit", "formats": ["sprunec"]}],
    }


def data(corpus: str, rows: int) -> dict[str, Any]:
    """`corpus`: python-docs, or the path of a text file."""
    source = {"source": corpus} if corpus == "python-docs" else {"source": "text", "path": str(Path(corpus).resolve())}
    return source | {"max_length": LENGTH, "batch_size": rows}


def cell_plan(corpus: str, checkpoint: Path, passes: list[Pass], seed: int, distil: float) -> dict[str, Any]:
    """A plan that starts from the dense model; `distil` is the weight of its logits."""
    training = TRAINING | ({"distillation": {"logits": distil}} if distil else {})
    return {
        "name": "cell",
        "seed": seed,
        "model": {"config": CONFIG, "checkpoint": str(checkpoint.resolve())},
        "data": data(corpus, ROWS),
        "training": training,
        "evaluate": {"tokens": HELD_OUT},
        "passes": passes,
    }
