"""From a plan to a finished training: attempts of one gang, each fenced by its number."""

from galvatron_operator import names
from galvatron_operator.api import ConditionType, Nodes, training_spec
from galvatron_operator.decide.announcing import BETWEEN_ATTEMPTS
from galvatron_operator.decide.gang import Gang, first_sign, gang_failure, gang_of, progress_status, stale_pods
from galvatron_operator.decide.images import say_images
from galvatron_operator.decide.lost import lost_pods, lost_text, seconds_until_lost, to_force
from galvatron_operator.decide.observed import Decision
from galvatron_operator.decide.queueing import hindrance, is_placed, kept_template, lacks_stateful_set
from galvatron_operator.decide.rescaling import rescale, rest, with_placeholders
from galvatron_operator.decide.restarting import (
    beginning,
    noted_sign,
    react,
    seconds_to_wait,
    without_sign,
)
from galvatron_operator.decide.situation import (
    FALSE,
    POLL_SECONDS,
    TRUE,
    Situation,
    attempt_of,
    complete,
    missing,
    next_attempt,
    record,
    references,
)
from galvatron_operator.decide.staying import staying_pods
from galvatron_operator.manifests import training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.plan import Plan
from galvatron_planner.worker import WorkerState

FAILING_SECONDS = 2.0
"""Between two looks at a gang of which a part has failed: the rest follows, and says why."""


def train(situation: Situation, plan: Plan) -> Decision:
    """Bring the job's current attempt forward, end the job, or begin another attempt."""
    begun = say_images(_say_attempt(situation).with_status(image=_image(situation)))
    attempt = begun.status.attempt
    gang = gang_of(begun.seen, attempt=attempt, num_nodes=plan.cluster.num_nodes)
    told = _say_progress(begun, gang, plan)
    if gang.has_succeeded:
        return complete(_say_nodes(told, gang), "TrainingFinished", f"attempt {attempt} finished every step")
    deadline_seconds = told.job.spec.failure_policy.progress_deadline_seconds
    failure = gang_failure(gang, told.status, progress_deadline_seconds=deadline_seconds, now=told.now)
    if failure is not None:
        return react(_say_nodes(without_sign(told), gang), plan, noted_sign(told) or failure)
    told = _note_sign(told, gang)
    if (rescaled := rescale(_say_nodes(told, gang), plan, gang)) is not None:
        return rescaled
    return _go_on(rest(told), plan, gang)


def _note_sign(situation: Situation, gang: Gang) -> Situation:
    """Write down which pod is taken away while its ranks save: when they have ended, nothing may tell any more."""
    sign, known = first_sign(gang, now=situation.now), noted_sign(situation)
    if sign is not None and known is None:
        return situation.with_status(failures=situation.status.with_failure(record(situation, sign)).failures)
    if sign is None and known is not None:
        # Whoever wanted the pod has thought better of it.
        return without_sign(situation)
    return situation


def has_finished_training(situation: Situation, plan: Plan) -> bool:
    """Tell whether the current attempt is through."""
    gang = gang_of(situation.seen, attempt=_known_attempt(situation), num_nodes=plan.cluster.num_nodes)
    return gang.has_succeeded


def _go_on(situation: Situation, plan: Plan, gang: Gang) -> Decision:
    """See to it that there is what the current attempt needs, and nothing of others."""
    seen, attempt = situation.seen, situation.status.attempt
    lost = lost_pods(situation, names.COMPONENT_TRAINER)
    around, trainers = _wanted(situation, plan)
    running = _under_way(situation, trainers)
    wanted = (*around, kept_template(situation, trainers)) if running is None else around
    staying = () if seconds_to_wait(situation) else staying_pods(seen, running or trainers, attempt=attempt)
    ending: tuple[Manifest, ...] = ()
    if lacks_stateful_set(situation, num_kept=len(gang.pods) + len(staying), num_nodes=gang.num_nodes):
        wanted, staying, ending = around, (), seen.stateful_sets(names.COMPONENT_TRAINER)
    stale = stale_pods(seen, attempt=attempt)
    decision = _say_gang(situation, gang, lost).decide(
        # The StatefulSet first: what it makes in place of a deleted pod belongs to this attempt.
        apply=(*missing(seen, *wanted), *(training.attempt_of_pod(pod, attempt) for pod in staying)),
        delete=references((*ending, *(pod for pod in stale if pod not in staying))),
        force_delete=to_force(situation, lost),
        after_seconds=_look_again_seconds(situation, gang),
    )
    return with_placeholders(decision, situation, plan, trainers)


def _look_again_seconds(situation: Situation, gang: Gang) -> float:
    failed = any(report.state is WorkerState.FAILED for report in gang.reports.values())
    pause = FAILING_SECONDS if failed or noted_sign(situation) is not None else POLL_SECONDS
    until_lost = seconds_until_lost(situation, names.COMPONENT_TRAINER)
    return min(pause, seconds_to_wait(situation) or pause, until_lost or pause)


def _known_attempt(situation: Situation) -> int:
    """The newest attempt, from whichever knows it: the status, or the objects when the status was lost."""
    observed = (attempt_of(stateful_set) for stateful_set in situation.seen.stateful_sets(names.COMPONENT_TRAINER))
    return max(situation.status.attempt, *observed, 0)


def _say_attempt(situation: Situation) -> Situation:
    """Number the attempt; after a suspension it is a new one, because ending pods may still write."""
    numbered = situation.with_status(attempt=max(_known_attempt(situation), 1))
    if situation.job.spec.suspend or not situation.status.is_true(ConditionType.SUSPENDED):
        return numbered
    resumed = numbered.say(ConditionType.SUSPENDED, FALSE, "Resumed", "from the newest training checkpoint, if any")
    return resumed if situation.status.attempt == 0 else next_attempt(resumed)


def _image(situation: Situation) -> str:
    """Give the image that the first trainers had: another one may write and read other training checkpoints."""
    if situation.status.image is not None:
        return situation.status.image
    existing = situation.seen.stateful_sets(names.COMPONENT_TRAINER)
    images = (owner["spec"]["template"]["spec"]["containers"][0]["image"] for owner in existing)
    return next(images, situation.image)


def _wanted(situation: Situation, plan: Plan) -> tuple[tuple[Manifest, ...], Manifest]:
    """Write what the trainers need, and their StatefulSet."""
    job = situation.job
    document = training_spec(
        job,
        checkpoint_directory=names.CHECKPOINT_DIRECTORY,
        data_root=names.DATA_DIRECTORY,
        weights_root=names.WEIGHTS_DIRECTORY,
    )
    trainers = training.stateful_set(
        job,
        plan,
        document,
        attempt=situation.status.attempt,
        image=_image(situation),
        # During a back-off others can use the devices.
        replicas=0 if seconds_to_wait(situation) else plan.cluster.num_nodes,
    )
    groups = () if is_placed(situation.status) else training.pod_groups(job, plan)
    return (training.training_config_map(job, document), training.service(job), *groups), trainers


def _under_way(situation: Situation, wanted: Manifest) -> Manifest | None:
    """Find the trainers if they are those of this attempt already, however another version would write them.

    What changes within an attempt would only be seen in a pod that is made anew, and that pod fit the others no more.
    """
    existing = situation.seen.stateful_sets(names.COMPONENT_TRAINER)
    alike = (e for e in existing if attempt_of(e) == attempt_of(wanted))
    return next((e for e in alike if e["spec"].get("replicas") == wanted["spec"]["replicas"]), None)


def _say_progress(situation: Situation, gang: Gang, plan: Plan) -> Situation:
    progress = gang.progress
    if progress is None:
        return situation
    before = situation.status.progress
    told = situation.with_status(progress=progress_status(progress, plan, before=before, now=situation.now))
    if progress.step == 0:
        return told
    stepped = told.with_status(first_step_time=told.status.first_step_time or told.now)
    return stepped.say(ConditionType.TRAINING, TRUE, "Progressing", progress.activity)


def _say_gang(situation: Situation, gang: Gang, lost: tuple[Manifest, ...]) -> Situation:
    """Say how the pods are, and what keeps them from training."""
    said = _say_nodes(situation, gang)
    training_ = situation.status.find(ConditionType.TRAINING)
    if not said.status.is_true(ConditionType.TRAINING) and (
        training_ is None or training_.reason not in BETWEEN_ATTEMPTS
    ):
        running = any(report.state is WorkerState.RUNNING for report in gang.reports.values())
        said = said.say(ConditionType.TRAINING, FALSE, "Rendezvous" if running else "NotStarted")
    if gang.num_ready == gang.num_nodes:
        return said.say(ConditionType.PODS_READY, TRUE, "AllPodsReady")
    moment = situation.status.restarts.not_before
    if moment is not None and seconds_to_wait(situation):
        return said.say(ConditionType.PODS_READY, FALSE, "BackOff", beginning(situation.status.attempt, moment))
    if lost:
        return said.say(ConditionType.PODS_READY, FALSE, "NodeLost", lost_text(lost))
    found = hindrance(situation, gang.pods, group=names.trainers_group(situation.job.name))
    if found is not None:
        return said.say(ConditionType.PODS_READY, FALSE, found.reason, found.message)
    return said.say(ConditionType.PODS_READY, FALSE, "Starting", f"{gang.num_ready} of {gang.num_nodes} pods are ready")


def _say_nodes(situation: Situation, gang: Gang) -> Situation:
    # Before all of them run, ranks have not met, and a new pod can still take the place of another.
    members = situation.status.nodes.members or (gang.members if gang.runs_whole else None)
    return situation.with_status(nodes=Nodes(desired=gang.num_nodes, ready=gang.num_ready, members=members))
