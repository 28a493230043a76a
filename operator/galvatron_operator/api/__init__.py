"""The GalvatronJob: what users write, what the operator answers, and what the planner is asked because of it.

The first box of *job -> profile -> plan -> training*. Knows the planner's types, no Kubernetes client.
"""

from galvatron_operator.api.job import GalvatronJob, Metadata, parse, training_spec
from galvatron_operator.api.placing import GangProvider
from galvatron_operator.api.policy import ElasticityMode, FailureRule, ForceDeleteLostPods, RuleAction
from galvatron_operator.api.reasons import FailureReason
from galvatron_operator.api.spec import (
    CONTROLLER,
    DatasetSource,
    Execution,
    ProfilingPolicy,
    Resume,
    Spec,
)
from galvatron_operator.api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    Estimates,
    FailureRecord,
    JobStatus,
    LayerGroup,
    Nodes,
    Phase,
    PipelineStatus,
    PlanStatus,
    ProfileOrigin,
    ProfileStatus,
    ProfilingStatus,
    ProgressStatus,
    Replan,
    ReplanRequest,
    Rescale,
    RestartCount,
    Restarts,
    parse_status,
)

__all__ = [
    "CONTROLLER",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "DatasetSource",
    "ElasticityMode",
    "Estimates",
    "Execution",
    "FailureReason",
    "FailureRecord",
    "FailureRule",
    "ForceDeleteLostPods",
    "GalvatronJob",
    "GangProvider",
    "JobStatus",
    "LayerGroup",
    "Metadata",
    "Nodes",
    "Phase",
    "PipelineStatus",
    "PlanStatus",
    "ProfileOrigin",
    "ProfileStatus",
    "ProfilingPolicy",
    "ProfilingStatus",
    "ProgressStatus",
    "Replan",
    "ReplanRequest",
    "Rescale",
    "RestartCount",
    "Restarts",
    "Resume",
    "RuleAction",
    "Spec",
    "parse",
    "parse_status",
    "training_spec",
]
