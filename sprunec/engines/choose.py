"""Choose what trains, by a plan's section `engine` and where the run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sprunec.engines.device import Place
from sprunec.engines.processes.world import World
from sprunec.plan.scale import shards_by_itself

if TYPE_CHECKING:
    from sprunec.engines.torch_engine import TorchEngine

BMTRAIN = "bmtrain"


def check_engine(settings: Mapping[str, Any], place: Place) -> None:
    """Raise InputError if what a plan wants to train with cannot work here."""
    if settings.get("name") == BMTRAIN:
        from sprunec.engines.bmtrain_engine import check_here

        check_here(place)
    if settings.get("compile"):
        from sprunec.engines.compiled import check_compiler

        check_compiler(place)


def choose_engine(settings: Mapping[str, Any], place: Place, world: World, seed: int, parameters: int) -> TorchEngine:
    """Make what trains a model of so many parameters; all ranks do it together.

    Args:
        settings: the plan's section `engine`.
    """
    from sprunec.engines.bmtrain_engine import BMTrainEngine
    from sprunec.engines.torch_engine import TorchEngine

    sharding, offload = settings.get("sharding", "auto"), bool(settings.get("offload"))
    recompute = bool(settings.get("activation_checkpointing"))
    if settings.get("name") == BMTRAIN:
        return BMTrainEngine(place, world, sharding != "none", recompute, offload, seed=seed)
    offload, full = offload and place.device.type != "cpu", sharding == "full"
    if not offload and world.size > 1 and sharding == "auto":  # as fits rank 0's device
        full = bool(world.broadcast(shards_by_itself(parameters, place.memory(world.size))))
    full = offload or (world.size > 1 and full)
    return TorchEngine(place, world, full, recompute, offload, compiled=bool(settings.get("compile")))
