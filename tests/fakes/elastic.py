"""Jobs that may train on fewer nodes, in worlds with just as many machines as they ask for."""

from collections.abc import Callable

from fakes.operation import KEY, Operation, body
from fakes.world import Act, InstantSearches, Scene, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.decide import Kind
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.worker import WorkerState

DELAY = 100
CHECKPOINT = {"volume": {"claimName": "kept"}, "periodSteps": 10}
ENDURING = 40
"""Steps of time that an attempt takes; a step of time is ten seconds."""


def takes_long(scene: Scene) -> Act:
    """Train for a while; what an attempt does not get to, the next one begins anew."""
    if scene.component != names.COMPONENT_TRAINER:
        return all_goes_well(scene)
    done = scene.age >= ENDURING
    return Act(WorkerState.SUCCEEDED if done else WorkerState.RUNNING, step=100 if done else scene.age)


def elastic(nodes: int = 2, *, least: int = 1, **spec: object) -> Operation:
    """Create a job of some nodes with two devices each, in a world that has just as many."""
    return begin_with(InstantSearches(), nodes, least=least, **spec)


def begin_with(searches: InstantSearches, nodes: int = 2, *, least: int = 1, **spec: object) -> Operation:
    """Create the job with searches of one's own."""
    operation = Operation(World(takes_long, machines=[f"machine-{i}" for i in range(nodes)]), searches)
    budget = {"gpus": 2 * nodes, "minGPUs": 2 * least, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "4Gi"}
    policy = {"nodeLostTimeoutSeconds": 20, "forceDeleteLostPods": "AfterTimeout"}
    changed = {
        "budget": budget,
        "elasticity": {"mode": "Replan", "rescaleDelaySeconds": DELAY},
        "failurePolicy": policy,
        "checkpoint": CHECKPOINT,
    }
    operation.create(body(**(changed | spec)))
    return operation


def until(operation: Operation, is_so: Callable[[JobStatus], bool], *, rounds: int = 60) -> JobStatus:
    """Let time pass until the status is as wanted."""
    for _ in range(rounds):
        if operation.status is not None and is_so(operation.status):
            return operation.status
        operation.rounds(1)
    raise AssertionError(operation.status)


def trains_on(num_devices: int) -> Callable[[JobStatus], bool]:
    """Tell whether a job trains on so many devices."""

    def is_so(status: JobStatus) -> bool:
        planned = status.plan is not None and status.plan.gpus == num_devices
        return planned and status.is_true(ConditionType.TRAINING)

    return is_so


def lose(operation: Operation, ordinal: int) -> str:
    """Lose the node under a trainer, and name it."""
    name = names.pod(KEY.name, ordinal)
    [node] = [pod["spec"]["nodeName"] for pod in operation.world.pods() if pod["metadata"]["name"] == name]
    operation.world.lose_node_of(name)
    return str(node)


def pods(operation: Operation, component: str) -> list[Manifest]:
    """Pods of a component."""
    return [pod for pod in operation.all_of(Kind.POD) if pod["metadata"]["labels"][names.LABEL_COMPONENT] == component]
