"""Distillation: losses beside the language model's that draw a model to a larger one's logits and hidden states.

logits  Soft-label cross entropy (Hinton, Vinyals & Dean 2015): T^2 H(softmax(t / T), softmax(s / T)), summed over the
        vocabulary, mean over the targets. T^2 keeps its gradient's size whatever the temperature T.
hidden  Per pair of states, the mean squared difference of the two after each position's vector was divided by its own
        L2 norm; mean over the positions in use and over the features, pairs added up. BMCook divides by the mean norm
        of all positions instead. That mean is of whatever slice of the batch is at hand, so the loss would depend on
        how a batch is split; a position's own norm does not.

Letters in shapes: B sequences, N positions, V tokens of the vocabulary, m positions of a chunk, S and T the student's
and the teacher's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import Batch, in_use
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
        teacher: on the training's device; put in eval mode, its weights frozen.
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
        self.teacher.eval().requires_grad_(False)
        self._students, self._teachers = States(student_places), States(teacher_places)
        self._targets = self._positions = 1

    def parameters(self) -> list[nn.Parameter]:
        return [weight for weight in self.projections if weight is not None]

    def begin(self, batch: Batch) -> None:
        """Take in the global batch of the step, whose targets and positions the losses are means over."""
        self._targets, self._positions = batch.target_count, int(batch.inputs["length"].sum())

    def terms(self, part: Batch) -> list[Term]:
        """Run the teacher on a part of the batch, and give the loss of logits, if it counts: the part's share of it."""
        if not self.weights.logits and not self.pairs:
            return []
        with torch.no_grad():
            taught = self.teacher.states(**part.inputs).flatten(0, 1)
        share = self.weights.logits / self._targets

        def term(logits: Tensor, places: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = self.teacher.project(taught[places])
            return share * soft_cross_entropy(logits, teacher, self.weights.temperature)

        return [term] if self.weights.logits else []

    def hidden_loss(self, part: Batch) -> Tensor:
        """Return the weighted loss of hidden states of a part that has just been run through both models: its share."""
        total, used = torch.zeros((), device=part.targets.device), in_use(part.inputs)
        students, teachers = self._students.take(), self._teachers.take()
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            state = teachers[pair.teacher]
            wanted = state if projection is None else F.linear(state, projection)
            difference = hidden_difference(students[pair.student], wanted, used)
            total = total + self.weights.hidden * difference / self._positions
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


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross entropy in nats at temperature T, summed over positions.

    Args:
        student, teacher: logits (m, V); the gradient goes to the student's.
    """
    wanted = (teacher.float() / temperature).softmax(-1)
    return -(temperature**2) * (wanted * (student.float() / temperature).log_softmax(-1)).sum()


def hidden_difference(student: Tensor, teacher: Tensor, used: Tensor) -> Tensor:
    """Return the mean over features of the squared difference of unit vectors, summed over the positions in use.

    Args:
        student, teacher: (B, N, S).
        used: (B, N) bool.
    """
    ours, theirs = (F.normalize(x[used].float(), dim=-1, eps=SMALLEST_NORM) for x in (student, teacher))
    return (ours - theirs).square().mean(-1).sum()
