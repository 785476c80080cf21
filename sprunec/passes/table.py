"""Every pass: where its code is, what it needs and gives. Needs no torch; the order of a run follows from it.

A new pass is one file here, one row below, and, if users may write it in a plan, one schema.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassInfo:
    """One kind of step.

    Attributes:
        module: the file in this room whose `run(job)` does it; where users may ask for a file of what came out, its
            `write(role, artifact, inputs, path)` makes that, once the artifact is there.
        version: raised whenever the same options on the same inputs give another result.
        needs: the inputs, by the names that `run` finds them under; those in `optional` may be missing.
        gives: what kind of artifact it leaves.
        trains: whether all ranks do it together; other passes are the lead's.
        fails_alone: whether the run goes on without what it has looked at, and ends with exit code 1.
    """

    module: str
    version: int
    needs: tuple[str, ...]
    gives: str
    optional: tuple[str, ...] = ()
    trains: bool = False
    fails_alone: bool = False


PASSES: dict[str, PassInfo] = {
    "data": PassInfo("read_data", 1, (), "data"),
    "load": PassInfo("load", 2, (), "model"),
    "trace": PassInfo("trace_sites", 1, ("model",), "sites"),
    "train": PassInfo("train", 3, ("model", "data"), "model", optional=("teacher",), trains=True),
    "finetune": PassInfo("train", 3, ("model", "data"), "model", optional=("teacher",), trains=True),
    "train-mask": PassInfo("train_mask", 5, ("model", "data"), "gated", optional=("teacher",), trains=True),
    "score-mask": PassInfo("score_mask", 2, ("model",), "scores", optional=("data",)),
    "load-mask": PassInfo("load_mask", 2, ("model", "source"), "masks"),
    "sparsify": PassInfo("sparsify", 1, ("model",), "model"),
    "binarize": PassInfo("binarize", 4, ("model", "scores"), "masks"),
    "compensate": PassInfo("compensate", 2, ("model", "masks", "data"), "model", optional=("scores",)),
    "rewrite": PassInfo("cut", 2, ("model", "masks"), "rewritten", optional=("origin",)),
    "expand": PassInfo("expand", 2, ("model", "source"), "masked", optional=("origin",)),
    "emit": PassInfo("emit", 5, ("model", "source"), "emitted"),
    "compare-format": PassInfo(
        "compare_format", 2, ("model", "emitted"), "comparison", optional=("data",), fails_alone=True
    ),
    "compare": PassInfo("compare", 5, ("masked", "masks", "small"), "comparison", optional=("data",)),
    "evaluate": PassInfo("evaluate", 2, ("model", "data"), "measures", optional=("masks",)),
    "measure-speed": PassInfo("measure_speed", 1, ("dense", "data"), "measures", optional=("masked", "masks", "small")),
}
