"""What a job does when something goes wrong, or takes too long.

``spec.failurePolicy`` says when to start again and when to give up (``decide/rules.py``), ``spec.elasticity`` whether
to go on with fewer nodes (``decide/rescaling.py``), ``spec.lifecycle`` what the ends are (``decide/finishing.py``).
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from galvatron_operator.api.reasons import FailureReason
from galvatron_operator.api.values import Seconds, SpecValue


class ForceDeleteLostPods(StrEnum):
    """What becomes of pods that no kubelet ends."""

    NEVER = "Never"
    AFTER_TIMEOUT = "AfterTimeout"


class RuleAction(StrEnum):
    """What a rule makes of a failure."""

    RESTART_JOB = "RestartJob"
    RESTART_JOB_IGNORE_LIMIT = "RestartJobIgnoreLimit"
    FAIL_JOB = "FailJob"


class SetOperator(StrEnum):
    """Whether a value has to be among others."""

    IN = "In"
    NOT_IN = "NotIn"


class ExitCodes(SpecValue):
    """``spec.failurePolicy.rules[].onExitCodes``."""

    operator: SetOperator
    values: tuple[Annotated[int, Field(ge=1, le=255)], ...] = Field(min_length=1, max_length=32)

    def admit(self, code: int | None) -> bool:
        """Tell whether a code matches; a failure without a code matches neither operator."""
        return code is not None and (code in self.values) is (self.operator is SetOperator.IN)


class FailureRule(SpecValue):
    """One of ``spec.failurePolicy.rules``; every condition that it has must hold."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    on_reasons: tuple[FailureReason, ...] = Field(default=(), max_length=16)
    on_exit_codes: ExitCodes | None = None
    after_failures: int = Field(default=1, ge=1, le=10)
    action: RuleAction

    def matches(self, reason: str, exit_code: int | None) -> bool:
        """Tell whether the rule is about a failure."""
        reasons_hold = not self.on_reasons or reason in self.on_reasons
        return reasons_hold and (self.on_exit_codes is None or self.on_exit_codes.admit(exit_code))


class FailurePolicy(SpecValue):
    """``spec.failurePolicy``."""

    max_restarts: int = Field(default=3, ge=0, le=1000)
    progress_deadline_seconds: Seconds = 900
    node_lost_timeout_seconds: int = Field(default=120, ge=10, le=86_400)
    force_delete_lost_pods: ForceDeleteLostPods = ForceDeleteLostPods.NEVER
    rules: tuple[FailureRule, ...] = Field(default=(), max_length=16)


class ElasticityMode(StrEnum):
    """What a job does when not all of its nodes can be had."""

    NONE = "None"
    """It waits."""
    REPLAN = "Replan"
    """It is planned for the nodes that are left, and again for all of them when they are back."""


class Elasticity(SpecValue):
    """``spec.elasticity``; without a cluster it is ignored."""

    mode: ElasticityMode = ElasticityMode.NONE
    rescale_delay_seconds: int = Field(default=300, ge=10, le=86_400)


class Lifecycle(SpecValue):
    """``spec.lifecycle``, which may change while a job runs."""

    active_deadline_seconds: Seconds | None = None
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    pod_retention_seconds: int = Field(default=0, ge=0, le=86_400)
    termination_grace_period_seconds: int = Field(default=60, ge=30, le=3600)
    start_deadline_seconds: Seconds | None = None


def elasticity_problems(
    mode: ElasticityMode, *, gpus: int, min_gpus: int | None, gpus_per_node: int, is_plan_fixed: bool
) -> Iterator[tuple[str, str, str]]:
    """Say what is wrong with ``spec.elasticity`` and what belongs to it, as field, problem and remedy."""
    if mode is ElasticityMode.NONE:
        if min_gpus is not None:
            yield "budget.minGPUs", "is given with spec.elasticity.mode None", "leave it out, or set the mode to Replan"
        return
    if is_plan_fixed:
        problem = "is Replan with spec.search.algorithm Fixed, whose plan is for one number of GPUs"
        yield "elasticity.mode", problem, "leave it out, or use another algorithm"
    least = min_gpus or gpus
    if least >= gpus:
        problem = f"is {least} with spec.elasticity.mode Replan, not below the {gpus} of spec.budget.gpus"
        yield "budget.minGPUs", problem, "set it to a power of two below spec.budget.gpus"
    elif least & (least - 1) or least % gpus_per_node:
        yield "budget.minGPUs", f"is {least}, no power of two of whole nodes", "use gpusPerNode times a power of two"
