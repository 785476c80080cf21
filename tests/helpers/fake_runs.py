"""Reports and events of runs that nobody ran, with all that a page can show."""

from __future__ import annotations

import math
import random
from typing import Any

# (node, steps, target per layer or None, full size): 700 steps in all
TRAINED = [("3-train", 250, None, 0), ("4-train-mask-head", 150, 4.0, 16), ("6-finetune", 100, None, 0)]
TRAINED += [("7-train-mask-dim_ff", 120, 128.0, 256), ("9-finetune", 80, None, 0)]
PASSES = ["1-load", "2-trace", "3-train", "4-train-mask-head", "5-rewrite", "6-finetune", "7-train-mask-dim_ff"]
PASSES += ["8-rewrite", "9-finetune", "10-compare", "11-emit"]


def model(parameters: int, loss: float, speed: float, ratio: tuple[float, ...] = ()) -> dict[str, Any]:
    sample = "The import statement <module> is used to & 'names' in the local scope."
    measured = {"loss": loss, "perplexity": math.exp(loss), "tokens_per_second": speed}
    measured["tokens_per_second_spread"] = [0.9 * speed, 1.1 * speed]
    measured["relative_speed"] = dict(zip(("ratio", "low", "high"), ratio, strict=True)) if ratio else None
    samples = [{"given": "The import statement", "written": sample.removeprefix("The import statement")}] * 2
    return {"parameters": parameters, **measured, "sample": sample, "samples": samples}


def fake_passes() -> list[dict[str, Any]]:
    losses = {"3-train": 1.812, "4-train-mask-head": 2.104, "6-finetune": 1.861}
    return [
        {
            "name": name,
            "pass": name.split("-", 1)[1].removesuffix("-head").removesuffix("-dim_ff"),
            "digest": f"{index * 7919:064x}"[::-1],
            "cached": index < 2,
            "seconds": 0.3 if index < 2 else 21.7 + index,
            "metrics": {"loss": losses[name], "learning_rate": 0.01} if name in losses else {},
        }
        for index, name in enumerate(PASSES)
    ]


def fake_budgets() -> list[dict[str, Any]]:
    masks = [(name, target) for name, _, target, _ in TRAINED if target]
    return [
        {
            "pass": name,
            "name": f"layer {layer}",
            "asked": target,
            "target": target,
            "expected": target * 1.006,
            "got": target,
            "settled": layer != 3,
            "undecided": layer,
        }
        for name, target in masks
        for layer in range(4)
    ]


def fake_report() -> dict[str, Any]:
    attention = {"0": [1, 2, 7, 15], "1": [0, 5, 6, 9], "2": None, "3": [3, 4, 11, 12]}
    return {
        "status": "target-missed",
        "plan": {"name": "quickstart", "seed": 1234},
        "versions": {"sprunec": "0.1.0", "python": "3.12.4", "torch": "2.5.1", "device": "cpu", "cuda": None},
        "passes": fake_passes(),
        "models": {
            "dense": model(1_062_400, 1.7984, 21_430.0),
            "masked": model(1_062_400, 1.8427, 20_911.5, (0.98, 0.91, 1.04)),
            "small": model(412_672, 1.8427, 49_870.2, (2.33, 2.1, 2.5)),
        },
        "comparison": {"max_abs_difference": 2.38e-6, "tolerance": 1e-4, "tokens": 46_592},
        "kept": {"attention": attention, "feed_forward": {"0": 128, "1": 160, "2": 96, "3": None}},
        "budgets": fake_budgets(),
        "config": {"num_heads": 16, "dim_ff": 256, "num_layers": 4},
        "provenance": {
            "plan": {"name": "quickstart", "seed": 1234, "passes": [{"pass": "train", "steps": 250}]},
            "files": [{"path": "/data/corpus.txt", "sha256": "ab" * 32}],
            "machine": {"device": "cpu: a processor", "system": "Linux", "processors": 2, "memory": 16_000_000_000},
        },
        "error": None,
    }


def fake_search() -> list[dict[str, Any]]:
    """What a sweep of three targets has found."""
    found = [(360_000, 0.012, 9.5), (300_000, 0.034, 8.25), (240_000, 0.081, 7.0)]
    return [
        {
            "pass": f"{5 + number}-search-{number}",
            "chosen": number == 2,
            "limits": {
                "parameters": {"asked": size + 500, "got": size},
                "milliseconds": {"asked": 10.0, "got": milliseconds},
            },
            "parameters": size,
            "damage": kl / 2,
            "gap": 0.0,
            "absent": number,
            "kl": kl,
            "taken": 1,
        }
        for number, (size, kl, milliseconds) in enumerate(found, start=1)
    ]


def budget_lines(step: int, steps: int, target: float, full: float) -> list[dict[str, Any]]:
    share = min(1.0, 2 * step / steps)  # the target is ramped over the first half
    aim = full + (target - full) * share
    lag = [(full - target) * (0.05 + 0.03 * layer) * math.exp(-4 * max(0.0, step / steps - 0.4)) for layer in range(4)]
    more = {"target": aim, "multiplier1": 0.1 * step, "multiplier2": 0.05 * step}
    return [{"name": f"layer {layer}", "expected": min(full, aim + late), **more} for layer, late in enumerate(lag)]


def fake_events() -> list[dict[str, Any]]:
    noise, loss = random.Random(0), 5.6
    events: list[dict[str, Any]] = []
    for name, steps, target, full in TRAINED:
        for step in range(1, steps + 1):
            floor = 2.1 if target else 1.8
            loss += (floor - loss) * 0.02
            events.append(
                {
                    "node": name,
                    "step": step,
                    "steps": steps,
                    "loss": loss + noise.gauss(0, 0.05),
                    "learning_rate": 0.01,
                    "tokens_per_second": 21_000.0,
                    "model_steps": len(events) + 1,
                    "budgets": budget_lines(step, steps, target, full) if target else [],
                    "undecided": 3 if target else 0,
                }
                | ({"held_out": loss + 0.1} if step % 50 == 0 else {})
                | (kept_shares(full, step / steps) if target and step % 30 == 1 else {})
            )
    return events


def kept_shares(full: float, done: float) -> dict[str, Any]:
    """Gates of which every fourth stays open."""
    cells = min(int(full), 64)
    closing = [100 if cell % 4 == 0 else round(100 * (1 - done)) for cell in range(cells)]
    if full == cells:
        return {"kept_percent": {"head": {str(layer): closing for layer in range(4)}}}
    return {"kept_quantiles": {"dim_ff": {str(layer): sorted(closing) for layer in range(4)}}}
