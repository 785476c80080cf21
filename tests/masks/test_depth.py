"""Criteria of whole blocks against what one computes by hand on the models themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import Batch, in_use
from sprunec.data.compared import random_batch
from sprunec.engines.checkpoints import Saves
from sprunec.families.base_config import unit_cost
from sprunec.families.cards import native, read_config
from sprunec.masks.depth import Depth
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.hidden_states import HiddenStates
from sprunec.models.meta_models import empty_model
from sprunec.models.without_blocks import WithoutBlocks
from sprunec.plan.declared import CRITERIA
from sprunec.plan.targets import blocks_dropped
from tests.conftest import random_batch as own_batch
from tests.conftest import tiny_config, tiny_model
from tests.helpers.block_by_block import CPU, way_through
from tests.helpers.causal_lms import causal_lm

LAYERS = 5
FAMILIES = ("llama", "gpt2", "cpm-ant")
LISTS = {"llama": "model.layers", "gpt2": "transformer.h", "cpm-ant": "encoder.layers"}


class Case:
    """A model of five unlike blocks, batches for it, and its logits and blocks as its class has them."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "cpm-ant":
            self.config: Any = tiny_config(num_layers=LAYERS)
            self.model: Any = tiny_model(num_layers=LAYERS)
            inputs = [own_batch(context=False, seed=seed) for seed in range(2)]
            self.batches = [Batch(each, each["input"].roll(-1, 1)) for each in inputs]
        else:
            key = "n_layer" if name == "gpt2" else "num_hidden_layers"
            self.model = causal_lm(name, **{key: LAYERS})
            self.config = read_config(native(self.model.config.to_dict()))
            self.batches = [random_batch(self.config, 2, 9 + seed) for seed in range(2)]
        self.blocks: list[nn.Module] = list(self.model.get_submodule(LISTS[name]))

    def logits(self, batch: Batch) -> Tensor:
        if self.name == "cpm-ant":
            return self.model(**batch.inputs)[0]
        return self.model(input_ids=batch.inputs["input"], use_cache=False).logits

    @contextmanager
    def without(self, gone: Sequence[int]) -> Iterator[None]:
        def skip(module: Any, given: Any, found: Any) -> Any:
            return given[0] if isinstance(found, Tensor) else (given[0], *found[1:])

        handles = [self.blocks[index].register_forward_hook(skip) for index in gone]
        yield
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def loss(self, gone: Sequence[int]) -> float:
        total = 0.0
        with self.without(gone):
            for batch in self.batches:
                logits, targets = self.logits(batch).flatten(0, 1), batch.targets.flatten()
                total += float(F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        return total / sum(batch.target_count for batch in self.batches)

    @torch.no_grad()
    def states(self) -> list[Tensor]:
        """In front of each block and behind the last, (n, D) of all positions in use."""
        found: list[list[Tensor]] = [[] for _ in range(LAYERS + 1)]
        used: list[Any] = [None]

        def see(index: int, module: Any, given: Any, result: Any) -> None:
            found[index].append(given[0][used[0]])
            if index == LAYERS - 1:
                found[LAYERS].append((result if isinstance(result, Tensor) else result[0])[used[0]])

        handles = [block.register_forward_hook(partial(see, index)) for index, block in enumerate(self.blocks)]
        for batch in self.batches:
            used[0] = in_use(batch.inputs)
            self.logits(batch)
        for handle in handles:
            handle.remove()
        return [torch.cat(each).double() for each in found]

    def scores(self, criterion: str, dropped: int = 2, hidden: Any = None, **more: Any) -> list[float]:
        state = Tensors(self.config_state())
        model = empty_model(self.config)
        way = partial(way_through, self.config, model, state)
        paths = {f"{LISTS[self.name]}.{index}": index for index in range(LAYERS)}

        def open_way(batches: Sequence[Batch], without: Sequence[frozenset[str]] = ()) -> BlockByBlock:
            kind: Any = partial(WithoutBlocks, without=without) if without else BlockByBlock
            return way(batches, kind=kind, **more, **({"hidden": hidden()} if hidden else {}))

        saved = more["saves"].latest() if "saves" in more else None
        found = saved and saved["found"]
        given = Depth(paths, self.config.width, dropped, self.batches, open_way, CPU, found)
        scores = CRITERIA[criterion].score(given)
        assert list(scores) == [(index, "block") for index in range(LAYERS)]
        return [float(score) for score in scores.values()]

    def config_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in self.config.tensors()}


@pytest.mark.parametrize("name", FAMILIES)
def test_block_influence_is_how_far_a_block_turns_the_states(name: str) -> None:
    case = Case(name)
    states = case.states()
    naive = [1 - float(F.cosine_similarity(a, b, dim=1).mean()) for a, b in pairwise(states)]
    assert case.scores("block-influence") == pytest.approx(naive, rel=1e-4)
    assert max(naive) > 2 * min(naive)


@pytest.mark.parametrize("dropped", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_stretch_of_the_least_angle_goes_as_a_whole(name: str, dropped: int) -> None:
    case = Case(name)
    states = case.states()
    angles = [
        float(F.cosine_similarity(states[i], states[i + dropped], dim=1).arccos().mean()) / math.pi
        for i in range(LAYERS + 1 - dropped)
    ]
    naive = [min(angles[max(0, i - dropped + 1) : i + 1]) for i in range(LAYERS)]
    scores = case.scores("angular-distance", dropped)
    assert scores == pytest.approx(naive, rel=1e-4)
    least = sorted(range(LAYERS), key=scores.__getitem__)[:dropped]
    best = min(range(len(angles)), key=angles.__getitem__)
    assert sorted(least) == [*range(best, best + dropped)]


@pytest.mark.parametrize("name", FAMILIES)
def test_removal_loss_is_the_loss_without_the_block(name: str) -> None:
    case = Case(name)
    naive = [case.loss([index]) for index in range(LAYERS)]
    assert case.scores("removal-loss") == pytest.approx(naive, rel=1e-5)
    assert max(naive) - min(naive) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_iterative_removal_measures_again_after_each_block(name: str) -> None:
    case, gone = Case(name), list[int]()
    for _ in range(3):
        losses = {index: case.loss([*gone, index]) for index in range(LAYERS) if index not in gone}
        gone.append(min(losses, key=losses.__getitem__))
    scores = case.scores("iterative-removal", 3)
    assert sorted(range(LAYERS), key=scores.__getitem__)[:3] == gone
    assert [scores[index] for index in gone] == [-3, -2, -1]
    left = {index: scores[index] for index in range(LAYERS) if index not in gone}
    assert left == pytest.approx({index: losses[index] for index in left}, rel=1e-5)


def test_a_target_says_how_many_blocks_go() -> None:
    config = Case("llama").config
    block, whole = unit_cost(config, 0, "block"), config.parameters()
    assert blocks_dropped(config, {"num_layers": 3}) == 2
    assert blocks_dropped(config, {"parameters": whole - 2 * block}) == 2
    assert blocks_dropped(config, {"parameters": whole - 2 * block - 1}) == 3
    assert blocks_dropped(config, {"sparsity": 0.2}) == 1 and blocks_dropped(config, {"sparsity": 0.21}) == 2
    shorter = config.with_layers(
        [config.layers[0].resized(dict.fromkeys(config.layers[0].counts, 0)), *config.layers[1:]]
    )
    assert blocks_dropped(shorter, {"num_layers": 3}) == 1


class _Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.unit == "block"])
def test_what_was_killed_goes_on_to_the_same_scores(criterion: str, tmp_path: Path) -> None:
    case, hidden = Case("llama"), lambda: HiddenStates(CPU, tmp_path / "states")
    whole = case.scores(criterion, 3)

    left = [6 if criterion == "iterative-removal" else 2]

    def dying(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Killed

    saves = Saves(tmp_path / "saves", 1, lambda: False)
    with pytest.raises(_Killed):
        case.scores(criterion, 3, hidden=hidden, saves=saves, tell=dying)
    told = list[int]()
    again = case.scores(criterion, 3, hidden=hidden, saves=saves, tell=lambda done, total: told.append(done))
    assert again == whole and told[0] > 1
