"""Warn of feed-forward widths that kernels are slow with, and that quantizers by groups leave out."""

from __future__ import annotations

from collections.abc import Iterator

from sprunec.plan.search.choices import FINER, choices
from sprunec.plan.written_plan import Step, WrittenPlan

GROUP = 32  # llama.cpp's smallest, and what half-precision kernels like
LEAST = 256  # of narrower models nobody cares
OPENED = ("huggingface", "deci", "gguf")  # formats that such tools open
UNIT = "dim_ff"


def widths_fit(plan: WrittenPlan) -> None:
    """Check targets of feed-forward dims of a model that has such widths, and is emitted for such tools."""
    formats = {name for step in plan.valid_steps if step.name == "emit" for name in step.options["formats"]}
    dims = [layer.counts.get(UNIT, 0) for layer in plan.config.layers] if plan.config is not None else []
    if not formats & set(OPENED) or not dims or max(dims) < LEAST or any(size % GROUP for size in dims):
        return
    for step in (step for step in plan.valid_steps if UNIT in step.units and "target" in step.options):
        if (step.options.get("multiple_of") or {}).get(UNIT, 1) % GROUP == 0:
            continue
        odd = next(_odd(plan, step), None)
        why = f"kernels are slower with widths that are no multiples of {GROUP}, and quantizers may leave them out"
        several = f'"multiple_of": {{"{UNIT}": {GROUP}}}'
        if odd is None:
            continue
        if odd:
            below = odd // GROUP * GROUP
            hint = f"give {below} or {below + GROUP}" if below else f"give {GROUP}"
            key = f"target/{UNIT}" if UNIT in step.options["target"] else f"grid/{UNIT}"
            step.warn("odd-widths", key, f"{odd}: {why}", hint if key.startswith("target") else f"add {several}")
        else:
            step.warn("odd-widths", "target", f"layers may keep any width: {why}", f"add {several}")


def _odd(plan: WrittenPlan, step: Step) -> Iterator[int]:
    """Give widths that are no multiples; 0 where any may come out."""
    options, wanted = step.options, step.options["target"]
    if "grid" in options:
        assert plan.config is not None
        finer = FINER[options["damage"]]
        found = choices(plan.config, options["units"], options["grid"], options["multiple_of"], finer)
        yield from (each.kept[UNIT] for each in found if each.kept.get(UNIT, 0) % GROUP)
    elif options.get("budget") != "per-layer":
        yield 0
    elif wanted.get(UNIT, 0) % GROUP:
        yield wanted[UNIT]
