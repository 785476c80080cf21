"""What a valid plan may come to regret: checks that only warn, and look no further than the plan and its config."""

from __future__ import annotations

from collections.abc import Callable

from sprunec.plan.advice.gate_steps import gates_arrive
from sprunec.plan.advice.recovery import recovery_follows
from sprunec.plan.advice.texts import held_out_apart, text_lasts
from sprunec.plan.advice.widths import widths_fit
from sprunec.plan.written_plan import WrittenPlan

ADVICE: tuple[Callable[[WrittenPlan], None], ...] = (
    recovery_follows,
    gates_arrive,
    widths_fit,
    text_lasts,
    held_out_apart,
)
