"""Which step plan a trainer was asked for."""

from typing import Any

from ..ranks.logging import log_once
from ..step_plan import StepPlan, StepPlanRecord


_MICRO_BATCHES = StepPlan(balance=False)
AS_GIVEN = StepPlanRecord(plan=_MICRO_BATCHES, reason="`plan` is 'keep'")


def plan_asked_for(trainer: Any) -> StepPlanRecord | None:
    """What to begin with; None where steps are computed as the trainer's arguments say.

    Args:
        trainer (`UnslothAcceleratedSFTTrainer`): A trainer that is set up.
    """
    plugin = trainer.plugin
    if isinstance(plugin.plan, StepPlan):
        record = StepPlanRecord(plan=plugin.plan, reason="as given")
    elif _asks_for_auto(trainer):
        record = StepPlanRecord(plan=StepPlan(balance=plugin.balance is not False), reason=_why_not_searched(trainer))
    elif plugin.balance:
        record = StepPlanRecord(plan=StepPlan(balance=True), reason="`balance` is set, `plan` is 'keep'")
    else:
        return None
    if trainer.accelerator.num_processes > 1 and trainer.gradient_sync is None:
        log_once("step plan: not used, because gradients are not averaged by plain DDP")
        return None
    return record


def is_searched(trainer: Any) -> bool:
    """Whether a plan is looked for while the trainer trains."""
    return _asks_for_auto(trainer) and not _why_not_searched(trainer)


def _asks_for_auto(trainer: Any) -> bool:
    if trainer.plugin.plan is not None:
        return bool(trainer.plugin.plan == "auto")
    return bool(trainer.accelerator.num_processes > 1 and trainer.args.device.type == "cuda")


def _why_not_searched(trainer: Any) -> str:
    if trainer.args.full_determinism:
        return "`full_determinism` is set, and what is measured differs from run to run"
    if trainer.gradient_sync is not None and trainer.gradient_sync.compiled:
        return "the whole model is compiled, so nothing is reported between the ranks"
    if trainer.accelerator.ddp_handler is not None and trainer.accelerator.ddp_handler.static_graph:
        return "`static_graph` is set, so no layer can be kept that was recomputed before"
    return ""
