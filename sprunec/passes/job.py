"""What a pass is handed: options, artifacts as directories, and a directory to fill; and how to open what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from sprunec.engines.processes.world import World
from sprunec.families.base_config import ModelConfig, unit_sizes
from sprunec.graph.options import BatchOptions, CalibrationOptions, MaskOptions, Options
from sprunec.plan.declared import Criterion
from sprunec.plan.targets import blocks_dropped
from sprunec.units import Cut, Kept, Key, gate_units

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sprunec.checkpoint.reader import Tensors
    from sprunec.data.batches import Batch, Data
    from sprunec.engines.checkpoints import Saves
    from sprunec.engines.device import Place
    from sprunec.engines.torch_engine import TorchEngine
    from sprunec.masks.depth import Depth
    from sprunec.masks.scores import Calibration
    from sprunec.models.block_by_block import BlockByBlock
    from sprunec.rewrite.trace import TracedBlock

SET_ABOUT = "set.json"  # what the data pass has written about a CPM-Live set

O = TypeVar("O", bound=Options, covariant=True)  # noqa: E741


@dataclass(frozen=True)
class Job(Generic[O]):
    """One use of one pass.

    Attributes:
        inputs: directories of finished artifacts, by the names that the pass declares.
        files: the user's own files, by role.
        out: an empty directory; what is in it when `run` returns is the artifact.
        device: where to work; it must not change the result.
        report: takes an event a step.
        saves: where a training pass is saved while it runs; None: it is not.
        engine: the plan's choice of what trains, and how; no more than the device does it change the result.
        world: the processes that train. Only rank 0 has something to leave in `out`.
    """

    options: O
    inputs: Mapping[str, Path]
    files: Mapping[str, tuple[Path, ...]]
    out: Path
    device: str
    report: Callable[[dict[str, Any]], None]
    saves: Saves | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=World)

    @property
    def place(self) -> Place:
        """Choose the device, in the precision of the options; float32 where they have none."""
        from sprunec.engines.device import Place

        return Place.of(self.device, getattr(self.options, "precision", "fp32"))

    def directory(self, name: str = "model") -> Path:
        """Say where an input's model is: that of an emitted one is in our own format."""
        own = self.inputs[name] / "sprunec"
        return own if own.exists() else self.inputs[name]

    def config(self, name: str = "model") -> ModelConfig:
        from sprunec.families.model_directory import read_config

        return read_config(self.directory(name))

    def model(self, name: str = "model") -> nn.Module:
        """Load an input's model in float32 to the device."""
        from sprunec.models.loading import load_model

        return load_model(self.directory(name)).float().to(self.place.device)

    def empty(self, name: str = "model") -> nn.Module:
        """Build an input's model on the meta device; an engine's `load` gives it its weights."""
        from sprunec.models.meta_models import empty_model

        return empty_model(self.config(name))

    def weights(self, name: str = "model") -> Tensors:
        """Open an input's tensors by name; each is read when it is asked for."""
        from sprunec.families.model_directory import open_model_tensors

        return open_model_tensors(self.directory(name))

    def traced(self, model: nn.Module, name: str = "model") -> tuple[TracedBlock, ...]:
        """Trace the blocks of a model that is as an input's."""
        from sprunec.models.meta_models import traced

        return traced(model, self.config(name))

    def calibration(self, units: Iterable[str], engine: TorchEngine | None = None) -> Calibration:
        """Trace the input's model, put open gates on its units, load it, and open the batches to calibrate on.

        Args:
            engine: what trains it, as several processes may; None: this one alone.
        """
        from sprunec.engines.torch_engine import TorchEngine
        from sprunec.masks.scores import Calibration
        from sprunec.rewrite.gating import insert_gates
        from sprunec.rewrite.trace import check_cuttable

        model, options = self.empty(), cast(CalibrationOptions, self.options)
        blocks, units = self.traced(model), gate_units(units)
        check_cuttable(blocks, units)
        gates = insert_gates(model, blocks, units)
        (engine or TorchEngine(self.place)).load(model, self.weights())
        return Calibration(model, gates, blocks, self.batches(self.config()), self.place, options.seed)

    def scores(
        self, criterion: Criterion, units: Iterable[str], engine: TorchEngine | None = None
    ) -> dict[Key, Tensor]:
        """Score the units of the input's model, in no more memory than the criterion needs; `engine` as above."""
        from sprunec.masks.calibration import STATISTICS, score_blocks
        from sprunec.masks.scores import Weights
        from sprunec.models.meta_models import empty_model, traced_shape
        from sprunec.rewrite.gating import insert_gates
        from sprunec.rewrite.trace import check_cuttable

        options, config, units = cast(BatchOptions, self.options), self.config(), tuple(units)
        if criterion.needs == "gradients":
            given = self.calibration(units, engine and replace(engine, place=self.place.exact))
            return criterion.score(replace(given, batches=self.steps(given.batches)))
        if criterion.unit:
            return criterion.score(self.depth())
        blocks, sizes = traced_shape(config), unit_sizes(config, units)
        check_cuttable(blocks, gate_units(units))
        if criterion.needs == "weights":
            return criterion.score(Weights(blocks, sizes, self.weights(), options.seed))
        model = empty_model(config)
        insert_gates(model, blocks, gate_units(units))
        way = self.block_by_block(model, self.batches(config))
        return score_blocks(way, blocks, sizes, STATISTICS[criterion.needs], criterion.score)

    def depth(self) -> Depth:
        """Open what blocks are scored by: the batches to calibrate on, and ways through the input's model for them."""
        from sprunec.masks.depth import Depth
        from sprunec.models.block_by_block import few_rows
        from sprunec.models.meta_models import empty_model, traced_shape
        from sprunec.models.without_blocks import WithoutBlocks

        config, options = self.config(), cast(MaskOptions, self.options)
        model, there = empty_model(config), {index for index, _ in unit_sizes(config, ("block",))}

        def way(batches: Iterable[Batch], without: Sequence[frozenset[str]] = ()) -> BlockByBlock:
            if not without:
                return self.block_by_block(model, batches)
            return self.block_by_block(model, batches, partial(WithoutBlocks, without=without))

        paths = {block.path: block.index for block in traced_shape(config) if block.index in there}
        dropped, batches = blocks_dropped(config, options.target), list(few_rows(self.batches(config), config))
        saved = self.saves.latest() if self.saves is not None else None
        found = None if saved is None else saved["found"]
        return Depth(paths, config.width, dropped, batches, way, self.place, found)

    def block_by_block(
        self, model: nn.Module, batches: Iterable[Batch], kind: Callable[..., BlockByBlock] | None = None
    ) -> BlockByBlock:
        """Put batches in front of the input's model, which may be of any size: it is on the meta device.

        Args:
            kind: of way; None: a plain one.
        """
        import torch

        from sprunec.families.base import family_of
        from sprunec.models.block_by_block import BlockByBlock, few_rows
        from sprunec.models.hidden_states import HiddenStates
        from sprunec.models.streamed import Streamed

        place, config, saves = self.place, self.config(), self.saves
        few = list(few_rows(batches, config))
        inputs = [batch.to(place.device).inputs for batch in few]
        stream = Streamed(family_of(config), model.eval(), self.weights(), inputs, torch.float32, place.device)
        folder = None if saves is None else saves.directory
        hidden = HiddenStates(place, folder, self.engine.get("hidden_states", "auto"))
        return (kind or BlockByBlock)(stream, few, hidden, saves, self.tell_block)

    def kept(self, name: str = "model") -> Kept:
        """Say what an input has left, by the indices of the plan's input model."""
        from sprunec.families.model_directory import read_kept

        return read_kept(self.directory(name))

    def left(self, name: str = "model") -> Cut:
        """Say what the input `masks` leaves of a model, by this model's own indices."""
        return self.kept("masks").inside(self.kept(name))

    def mask(self, model: nn.Module, name: str = "model") -> nn.Module:
        """Put the input `masks` on a model that is as an input's, as multiplications."""
        from sprunec.rewrite.gating import mask

        return mask(model, self.traced(model, name), self.left(name))

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Leave a model as the input's with other weights, without the gates that were put on it; all ranks do."""
        from sprunec.checkpoint.writer import as_outputs
        from sprunec.engines.sharding import Gathered
        from sprunec.families.model_directory import save_outputs

        if self.world.rank != 0:
            for name in state:
                state[name]  # rank 0 gathers it
            return
        outputs = state.outputs() if isinstance(state, Gathered) else as_outputs(state)
        kept = {name: output for name, output in outputs.items() if ".gates." not in name}
        save_outputs(self.out, self.config(), self.kept(), kept)

    def data(self, config: ModelConfig) -> Data:
        """Open what the data pass has made, and the user's own files where that only says where records lie."""
        from sprunec.data import packing, pairs
        from sprunec.data.batches import Packer, load_text_data

        directory, options = self.inputs["data"], cast(BatchOptions, self.options)
        order = {"batch_size": options.batch_size, "seed": options.seed}
        if (directory / SET_ABOUT).exists():
            from sprunec.bmcook.data.stream import load_live_data

            order |= {"max_length": options.max_length, "world": self.world.size}
            return load_live_data(directory, self.files, config, **order)
        load: Callable[..., Data] = packing.load_packed_texts if packing.has_rows(directory) else load_text_data
        load = pairs.load_pair_data if pairs.has_pairs(directory) else load
        return load(directory, Packer(config, options.max_length, config.vocab_size), **order)

    def tell_block(self, done: int, total: int) -> None:
        """Tell how many of a model's blocks are done."""
        self.report({"of": "block", "step": done, "steps": total})

    def steps(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Go through the batches of a pass that does not train, and tell of each that is done."""
        for number, batch in enumerate(batches, start=1):
            yield batch
            self.report({"of": "batch", "step": number, "steps": cast(CalibrationOptions, self.options).batches})

    def batches(self, config: ModelConfig) -> Iterator[Batch]:
        """Give the batches to calibrate on: those that training would see next."""
        data, options = self.data(config), cast(CalibrationOptions, self.options)
        return (data.batch(options.first_step + number) for number in range(options.batches))

    def distinct_batches(self, config: ModelConfig) -> Iterator[Batch]:
        """Give as many of which no two rows have text in common, or fewer where the data has no more."""
        options = cast(CalibrationOptions, self.options)
        return self.data(config).distinct_batches(options.first_step, options.batches)
