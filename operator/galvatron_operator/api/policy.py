"""``spec.failurePolicy``: when to start again, and when to give up; carried out by ``decide/rules.py``."""

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
