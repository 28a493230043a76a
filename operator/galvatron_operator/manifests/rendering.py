"""Everything that the operator would create for a job, as a list: for people who look before they apply."""

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob, ProfilingPolicy, training_spec
from galvatron_operator.manifests import profiling, training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import ProfileRequest


def render_job(job: GalvatronJob, request: ProfileRequest, *, image: str, plan: Plan | None) -> list[Manifest]:
    """List the objects of profiling and, when there is a plan, those of training's first attempt."""
    measured = (
        []
        if job.spec.profiling.policy is ProfilingPolicy.NEVER
        else [
            profiling.request_config_map(job, request),
            profiling.service(job, request),
            *profiling.pod_groups(job, request),
            profiling.indexed_job(job, request, attempt=0, image=image),
        ]
    )
    if plan is None:
        return measured
    specification = training_spec(
        job,
        checkpoint_directory=names.CHECKPOINT_DIRECTORY,
        data_root=names.DATA_DIRECTORY,
        weights_root=names.WEIGHTS_DIRECTORY,
    )
    return [
        *measured,
        training.plan_config_map(job, plan, report="{}\n"),
        training.training_config_map(job, specification),
        training.service(job),
        *training.pod_groups(job, plan),
        training.stateful_set(job, plan, specification, attempt=1, image=image, replicas=plan.cluster.num_nodes),
    ]
