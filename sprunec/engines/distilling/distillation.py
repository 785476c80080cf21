"""Distillation: losses beside the language model's that draw a model to a larger one's logits and hidden states.

logits  A divergence of the student's probabilities from the teacher's, see `divergences`; mean over the targets, or
        over all positions in use.
hidden  Per pair of states, the mean squared difference of the two after each position's vector was divided by its own
        L2 norm; mean over the positions in use, or over the targets, and over the features, pairs added up. BMCook
        divides by the mean norm of all positions instead. That mean is of whatever slice of the batch is at hand, so
        the loss would depend on how a batch is split; a position's own norm does not.

Letters in shapes: B sequences, N positions, V tokens of the vocabulary, m positions of a chunk, S and T the student's
and the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import Batch, in_use, places_of
from sprunec.engines.distilling.cached_teacher import CachedTeacher
from sprunec.engines.distilling.divergences import TopTokens, divergence
from sprunec.engines.losses import Term
from sprunec.engines.training import Distillation
from sprunec.errors import InputError
from sprunec.families.states import Pair, Point

PROJECTION_STD = 0.02
SMALLEST_NORM = 1e-6

Places = Mapping[Point, tuple[nn.Module, str]]  # the module to watch, and its first input ("pre") or output ("post")


class States:
    """The states at some points of a model, kept from its last forward pass until they are taken."""

    def __init__(self, places: Places) -> None:
        self._seen: dict[Point, Tensor] = {}
        watched = [(module, partial(self._see, point, side == "pre")) for point, (module, side) in places.items()]
        self._handles = [module.register_forward_hook(see) for module, see in watched]

    def _see(self, point: Point, before: bool, _: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        self._seen[point] = given[0] if before else result

    def take(self) -> dict[Point, Tensor]:
        """Hand out what was seen, once: states hold the graph of their pass."""
        seen, self._seen = self._seen, {}
        return seen

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


@dataclass
class Distiller:
    """An auxiliary loss of the training loop: a teacher, the pairs of states, and their projections, which it trains.

    Attributes:
        teacher: has `states(**inputs)` and `project(hidden)` as models have; or what such a one has said.
        student_places, teacher_places: where the states of `pairs` are to be seen.
        projections: for each pair the weight (S, T) of a linear map without bias of the teacher's state, or None.
    """

    teacher: Any
    weights: Distillation
    pairs: Sequence[Pair]
    student_places: InitVar[Places]
    teacher_places: InitVar[Places]
    projections: Sequence[nn.Parameter | None]

    def __post_init__(self, student_places: Places, teacher_places: Places) -> None:
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval().requires_grad_(False)
        self._students, self._teachers = States(student_places), States(teacher_places)
        self._taught: dict[Point, Tensor] = {}
        self._counts = {"targets": 1, "all": 1}

    @property
    def on(self) -> str:
        """Say at which positions `terms` are to be taken, see `places_of`."""
        return self.weights.logits_on if self.weights.logits else "targets"

    def parameters(self) -> list[nn.Parameter]:
        return [weight for weight in self.projections if weight is not None]

    def begin(self, batch: Batch) -> None:
        """Take in the global batch of the step, whose targets and positions the losses are means over."""
        self._counts = {"targets": batch.target_count, "all": int(in_use(batch.inputs).sum())}

    def terms(self, part: Batch) -> list[Term]:
        """Ask the teacher about a part of the batch, and give the loss of logits, if it counts: the part's share."""
        if not self.weights.logits and not self.pairs:
            return []
        said, weights, share = self._said(part), self.weights, self.weights.logits / self._counts[self.on]

        def term(logits: Tensor, places: Tensor) -> Tensor:
            return share * divergence(weights.divergence, logits, said(places), weights.temperature)

        return [term] if weights.logits else []

    def _said(self, part: Batch) -> Callable[[Tensor], Tensor | TopTokens]:
        """Give what tells the teacher's logits (m, V), or what is known of them, at places (m,) of a part."""
        if isinstance(self.teacher, CachedTeacher):
            known, asked = self.teacher.of(part), places_of(part, self.on).flatten()
            numbers = asked.cumsum(0) - 1
            return lambda places: known.rows(numbers[places])
        with torch.no_grad():
            states = self.teacher.states(**part.inputs).flatten(0, 1)
        self._taught = self._teachers.take()  # before `project` runs what stands behind the blocks on other positions

        def said(places: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.teacher.project(states[places])
            return logits

        return said

    def hidden_loss(self, part: Batch) -> Tensor:
        """Return the weighted loss of hidden states of a part that has just been run through both models: its share."""
        on = self.weights.hidden_on
        total, used = torch.zeros((), device=part.targets.device), places_of(part, on)
        students, teachers, self._taught = self._students.take(), self._taught, {}
        self._teachers.take()
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            ours, state = (each.reshape(*used.shape, -1) for each in (students[pair.student], teachers[pair.teacher]))
            wanted = state if projection is None else F.linear(state, projection)
            difference = hidden_difference(ours, wanted, used)
            total = total + self.weights.hidden * difference / self._counts[on]
        return total

    def state(self) -> dict[str, Any]:
        """Return what the steps to come depend on; the teacher is no part of it."""
        return {"projections": [weight.detach() for weight in self.parameters()]}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for weight, saved in zip(self.parameters(), state["projections"], strict=True):
            weight.copy_(saved)

    def close(self) -> None:
        """Leave both models unwatched."""
        self._students.close()
        self._teachers.close()


def make_projections(
    pairs: Sequence[Pair], widths: Sequence[tuple[int, int]], *, project: bool, seed: int, device: torch.device
) -> list[nn.Parameter | None]:
    """Draw one linear map for each pair from N(0, 0.02^2); None for each where `project` is off.

    Args:
        widths: the student's and the teacher's.

    Raises:
        InputError: two states are of different widths, and nothing projects.
    """
    noise = torch.Generator().manual_seed(seed)
    for pair, (student, teacher) in zip(pairs, widths, strict=True):
        if not project and student != teacher:
            message = f"{pair}: the student's state is {student} wide, the teacher's {teacher}"
            hint = 'write "project": true, or pair states of one width'
            raise InputError.in_option("/distillation/project", message, hint)
    drawn = (torch.randn(size, generator=noise) * PROJECTION_STD for size in widths)
    return [nn.Parameter(weight.to(device)) for weight in drawn] if project else [None] * len(pairs)


def hidden_difference(student: Tensor, teacher: Tensor, used: Tensor) -> Tensor:
    """Return the mean over features of the squared difference of unit vectors, summed over the positions used.

    Args:
        student, teacher: (B, N, S).
        used: (B, N) bool.
    """
    ours, theirs = (F.normalize(x[used].float(), dim=-1, eps=SMALLEST_NORM) for x in (student, teacher))
    return (ours - theirs).square().mean(-1).sum()
