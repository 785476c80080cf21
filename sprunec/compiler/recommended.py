"""A first plan for a model: the recipe that did best at the size that is asked for, and why; needs no torch.

What is recommended follows docs/quality.md and docs/experiments.md: a search over groups and dims with refits; for more
than a small cut a recovery that is distilled from the dense model, by adapters as long as most of the model is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sprunec.compiler.first_sections import data_section, model_section, plan_name, short
from sprunec.compiler.opened import Opened, open_model
from sprunec.compiler.plan_file import schema_from
from sprunec.errors import InputError, series
from sprunec.families.base_config import ModelConfig, removable
from sprunec.families.cards import card_of
from sprunec.plan.plan import check_source
from sprunec.plan.search.costs import memory
from sprunec.plan.source import Source, has_errors

UNTRAINED, MOST_ADAPTED = 0.15, 0.5  # shares of what can be cut, up to which refits are enough, and adapters are
TOKENS = {"adapted": 10**6, "trained": 10**7, "dense": 10**7}  # of training, if the text has as many
EPOCHS = 4  # of a text that a model is trained on from the start; recovering goes through it once
FEW_STEPS = 100
LONG = 4096  # positions of a text whose keys and values count as memory
WIDTHS, STEPS = (64, 32, 16, 8), 32  # multiples that kernels like, and how many of them a search is left at least
RATES = {"adapted": 5e-4, "trained": 5e-5}  # of models of transformers, see docs/quality.md
DEFAULT_SPARSITY = 0.2


@dataclass(frozen=True)
class Wish:
    """The size that is asked for.

    Attributes:
        sparsity: the share to remove of what the recommended units can.
        gigabytes: of the weights, and of keys and values of one text.
        milliseconds: for a token that is decoded.
    """

    parameters: int | None = None
    sparsity: float | None = None
    gigabytes: float | None = None
    milliseconds: float | None = None

    @property
    def words(self) -> str:
        """Name the size, as a part of a plan's name."""
        given = {"": self.parameters, "less": self.sparsity, "gb": self.gigabytes, "ms": self.milliseconds}
        parts = []
        for unit, size in given.items():
            if size is not None:
                written = short(size) if not unit else f"{100 * size:g}" if unit == "less" else f"{size:g}"
                parts.append(f"{unit}-{written}" if unit == "less" else f"{written}{unit}")
        return "-".join(parts)


@dataclass(frozen=True)
class Recommended:
    """A plan, and why it is as it is, in sentences."""

    document: dict[str, Any]
    reasons: tuple[str, ...]


def recommend(model: Path, wish: Wish, data: tuple[Path, ...] = (), output: Path | None = None) -> Recommended:
    """Write a plan for a model.

    Args:
        model: a config, a checkpoint, a directory, or the name of a cached model of the hub.
        data: files of text, JSON lines or tables, or a binary set; none: the documentation inside Python.
        output: the file that it will be; its paths are relative to that file's folder, else to the current one.

    Raises:
        InputError: it cannot be opened, or not be cut so far.
    """
    opened, folder = open_model(model), output.parent if output is not None else Path()
    config = opened.config
    units = _units(config)
    asked = wish if wish != Wish() else Wish(sparsity=DEFAULT_SPARSITY)
    target, share = _target(config, asked, units)
    section, tokens = data_section(opened, data, folder)
    recipe = _Recipe(config, section, tokens)
    if asked != wish:
        recipe.reasons.append(f"no size is asked for: {DEFAULT_SPARSITY:.0%} of what can be cut goes")
    named, passes = model_section(model, opened, folder), [recipe.search(units, target), *recipe.recovery(share)]
    if card_of(config).own_code and not opened.weights:
        passes.insert(0, recipe.training())
    elif not opened.weights:
        recipe.reasons.append(f"run needs the weights as {named['checkpoint']}")
    document = {
        "$schema": schema_from(folder),
        "name": plan_name(opened.path, asked.words),
        "model": named,
        "data": section,
        "evaluate": {"tokens": 20000},
        "passes": [*passes, {"pass": "emit", "formats": ["sprunec" if card_of(config).own_code else "huggingface"]}],
    }
    _check(document, folder, opened, asked)
    return Recommended(document, tuple(recipe.reasons))


def _units(config: ModelConfig) -> list[str]:
    """Choose key-value groups, or heads where each has a group of its own, and feed-forward dims.

    Raises:
        InputError: none of them can be cut.
    """
    fixed, there = card_of(config).fixed_units(config), {unit for layer in config.layers for unit in layer.counts}
    heads = "kv_group" if "kv_group" in there else "head"
    if units := [unit for unit in (heads, "dim_ff") if unit in there and unit not in fixed]:
        return units
    why = series([f"{unit}: {why}" for unit, why in fixed.items()], "and") or "it has no layers"
    raise InputError.in_option("MODEL", f"nothing of this model can be cut: {why}", "see docs/families.md")


def _target(config: ModelConfig, wish: Wish, units: list[str]) -> tuple[dict[str, Any], float | None]:
    """Write the limits of a search, and tell which share of what the units can remove they take; None: unknown.

    Raises:
        InputError: the model is within them as it is.
    """
    total, most = config.parameters(), removable(config, units)
    target: dict[str, Any] = {}
    shares = list[float]()
    wanted = wish.parameters if wish.sparsity is None else round(float(f"{total - wish.sparsity * most:.4g}"))
    if wanted is not None:
        if wanted >= total:
            message = f"{wanted:,} is not below {total:,}, the parameters that the model has"
            raise InputError.in_option("--parameters", message, "give less", "target-too-large")
        target["parameters"] = short(wanted)
        shares.append((total - wanted) / most)
    if wish.gigabytes is not None:
        has = _memory(config)
        if wish.gigabytes * 1e9 >= has:
            message = f"{wish.gigabytes:g} GB are not below {has / 1e9:.3g} GB, what the model takes as it is"
            raise InputError.in_option("--memory", message, "give less", "target-too-large")
        target["memory"] = {"gigabytes": wish.gigabytes, "batch": 1, "length": LONG}
        shares.append((1 - wish.gigabytes * 1e9 / has) * total / most)
    if wish.milliseconds is not None:
        target["latency"] = {"milliseconds_per_token": wish.milliseconds, "batch": 1}
    return target, max(shares) if shares and wish.milliseconds is None else None


def _memory(config: ModelConfig) -> float:
    """Count the bytes of the weights, and of keys and values of one long text.

    Raises:
        InputError: what the model caches is not known.
    """
    try:
        return memory(1, LONG)(config)
    except ValueError as error:
        raise InputError.in_option("--memory", str(error), "give --parameters instead") from error


@dataclass(frozen=True)
class _Recipe:
    """The passes of a plan.

    Attributes:
        data: the plan's section.
        tokens: those to train on, about; None: nobody knows.
        reasons: why passes are as they are; grows.
    """

    config: ModelConfig
    data: Mapping[str, Any]
    tokens: int | None
    reasons: list[str] = field(default_factory=list)

    def search(self, units: list[str], target: dict[str, Any]) -> dict[str, Any]:
        """Search within the limits, by widths that kernels like."""
        self.reasons.append("a search chooses how much of each layer stays, and refits that: no cut by hand did better")
        found: dict[str, Any] = {"pass": "search", "units": units, "target": target}
        dims = max((layer.counts.get("dim_ff", 0) for layer in self.config.layers), default=0)
        width = next((width for width in WIDTHS if dims >= STEPS * width), None)
        if "dim_ff" in units and width is not None:
            found["multiple_of"] = {"dim_ff": width}
            self.reasons.append(f"widths are multiples of {width}, which kernels and quantizers like")
        if not card_of(self.config).own_code:
            self.reasons.append('layers may differ; "uniform": true keeps them alike, for a stock class')
        return found

    def training(self) -> dict[str, Any]:
        """Train a new model, which has nothing yet that could be kept."""
        self.reasons.insert(0, "there are no weights: a new model is trained first; name your model's to cut these")
        return {"pass": "train", "steps": self._steps("dense", None if self.tokens is None else EPOCHS * self.tokens)}

    def recovery(self, share: float | None) -> Iterator[dict[str, Any]]:
        """Train what is left, drawn to the dense model, where refits are not enough.

        Args:
            share: of what can be cut, as much as goes; None: nobody knows.
        """
        told = "an unknown share" if share is None else f"{share:.0%}"
        if share is not None and share <= UNTRAINED:
            self.reasons.append(f"{told} of what can be cut goes: refits are enough, and nothing is trained")
            return
        few, adapts = share is None or share <= MOST_ADAPTED, find_spec("peft") is not None
        how = "adapted" if few and adapts else "trained"
        found: dict[str, Any] = {"pass": "finetune", "steps": self._steps(how, self.tokens)}
        if not card_of(self.config).own_code:
            found["learning_rate"] = RATES[how]
        if how == "adapted":
            found["adapter"] = {"kind": "lora", "rank": 16, "alpha": 32}
        what = "adapters train, in less memory and no worse than" if how == "adapted" else "training of"
        self.reasons.append(f"{told} of what can be cut goes: {what} all weights, drawn to the dense model")
        if few and not adapts:
            self.reasons.append("adapters would do as well in less memory: pip install 'sprunec[lora]', and init again")
        if found["steps"] < FEW_STEPS:
            self.reasons.append(f"the text has enough for {found['steps']} steps of recovery: give more with --data")
        yield found | {"distillation": {"logits": 1.0}}

    def _steps(self, how: str, most: int | None) -> int:
        """Count steps of as many tokens as are worth it, and as the text has."""
        wanted = TOKENS[how] if most is None else min(TOKENS[how], most)
        return max(1, wanted // int(self.data["batch_size"] * self.data["max_length"]))


def _check(document: dict[str, Any], folder: Path, opened: Opened, wish: Wish) -> None:
    """Check the plan as `validate` does; what is wrong with a size is told about the option that asks for it."""
    found = check_source(Source(str(opened.path), document, folder=folder), incomplete=True)[1]
    if not has_errors(found):
        return
    worst = found[0]
    if "/target" in worst.pointer:
        option = "--memory" if worst.pointer.endswith("gigabytes") else "--parameters"
        option = "--sparsity" if option == "--parameters" and wish.sparsity is not None else option
        raise InputError.in_option(option, worst.message, worst.hint.partition(", ")[0], worst.code)
    raise InputError(*found)
