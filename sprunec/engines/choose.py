"""Make the engine that a plan asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.engines.device import Place
from sprunec.engines.protocols import TrainingEngine
from sprunec.engines.world import World
from sprunec.plan.scale import shards_by_itself

BMTRAIN = "bmtrain"


def check_engine(settings: Mapping[str, Any], place: Place) -> None:
    """Raise InputError if what a plan wants to train with cannot work here."""
    if settings.get("name") == BMTRAIN:
        from sprunec.engines.bmtrain_engine import check_here

        check_here(place)


def choose_engine(
    settings: Mapping[str, Any], place: Place, world: World, seed: int, parameters: int
) -> TrainingEngine:
    """Make what trains a model of so many parameters; all ranks do it together.

    Args:
        settings: the plan's section `engine`.
    """
    offload, recompute = bool(settings.get("offload")), bool(settings.get("activation_checkpointing"))
    sharding = settings.get("sharding", "auto")
    if settings.get("name") == BMTRAIN:
        from sprunec.engines.bmtrain_engine import BMTrainEngine

        return BMTrainEngine(place, world, seed, full=sharding != "none", recompute=recompute, offload=offload)
    from sprunec.engines.torch_engine import TorchEngine

    offload = offload and place.device.type != "cpu"
    full = sharding == "full"
    if not offload and world.size > 1 and sharding == "auto":  # as fits rank 0's device
        full = bool(world.broadcast(shards_by_itself(parameters, place.memory(world.size))))
    return TorchEngine(place, world, full=offload or (world.size > 1 and full), recompute=recompute, offload=offload)
