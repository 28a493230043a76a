"""After a job has run out of device memory: how much less its next plan may use, and when there is no use in another.

The limit is in the status, and a plan counts only if it was made under it. So the limit is written before anything is
taken away, former plans stay for the record, and the profile, which was asked for under the job's own budget, is used
again.
"""

from galvatron_operator.api import ConditionType, JobStatus, Replan
from galvatron_operator.decide.situation import FALSE, Situation
from galvatron_operator.failures import Failure
from galvatron_planner.cluster import Cluster
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm
from galvatron_planner.units import MIB, format_quantity, parse_bytes

MOST_REPLANS = 3
"""By then the limit is down by 14 %; what needs even less memory than predicted is not cured by another plan."""
KEPT_PERCENT = 95
"""Of what was too much: chosen, not measured. A step large enough that the next plan differs by more than what an
allocator loses between tensors, and small enough that mostly there is one."""


def memory_limit(status: JobStatus) -> int | None:
    """Tell what a plan may use of each device, in bytes, where that is less than the budget.

    Raises:
        InvalidInput: when somebody else wrote the status.
    """
    if status.replan is None:
        return None
    return parse_bytes(status.replan.memory_per_gpu, where="status.replan.memoryPerGPU")


def planned_cluster(situation: Situation) -> Cluster:
    """Describe the devices of the job as the search shall see them."""
    status, cluster = situation.status, situation.job.cluster
    limit, nodes = memory_limit(status), status.rescale.nodes if status.rescale is not None else None
    memory = {} if limit is None else {"device_memory_bytes": limit}
    return cluster.model_copy(update=memory if nodes is None else memory | {"num_nodes": nodes})


def smaller_limit(plan: Plan, failure: Failure) -> int:
    """Tell what the next plan may use of each device, in bytes and whole MiB, after ``plan`` needed too much.

    That is less than what the failed rank had, and less than what was predicted of the plan: otherwise the search would
    choose the same plan again wherever the prediction was too low.
    """
    too_much = [plan.cluster.device_memory_bytes, plan.estimate.peak_bytes]
    if failure.peak_bytes is not None:
        too_much.append(failure.peak_bytes)
    return min(too_much) * KEPT_PERCENT // 100 // MIB * MIB


def objection(situation: Situation, limit: int) -> str | None:
    """Tell why the job is not planned anew, with what a person can do; None where it is."""
    replan = situation.status.replan
    if situation.job.spec.search.algorithm is Algorithm.FIXED:
        return "bring a plan that needs less memory, or let one be searched (spec.search.algorithm)"
    if replan is not None and replan.count >= MOST_REPLANS:
        return (
            f"the job was planned anew {replan.count} times, at last for {replan.memory_per_gpu} per device; look for"
            " what takes memory that no plan counts, or create the job with a lower spec.budget.memoryPerGPU"
        )
    if limit <= 0:
        return "no plan needs less than what the device had; give the job devices with more free memory"
    return None


def replan(situation: Situation, failure: Failure, limit: int) -> Situation:
    """Give up the plan for one that needs less memory."""
    former, attempt = situation.status.replan, situation.status.attempt
    count = former.count if former is not None else 0
    newest = Replan(
        count=count + 1, memory_per_gpu=format_quantity(limit), reason=failure.reason.value, attempt=attempt
    )
    return say_replanning(situation.with_status(replan=newest, plan=None), newest)


def say_replanning(situation: Situation, newest: Replan) -> Situation:
    """Say why there is no plan now."""
    return situation.say(ConditionType.PLAN_READY, FALSE, "Replanning", replanning_text(newest))


def replanning_text(newest: Replan) -> str:
    """Say why and with which limit a plan is searched anew."""
    return (
        f"after {newest.reason} in attempt {newest.attempt}: a plan is searched that needs at most"
        f" {newest.memory_per_gpu} of each device"
    )
