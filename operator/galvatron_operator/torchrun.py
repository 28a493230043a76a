"""The command line and environment of a supervised torchrun: the same in a pod and on a laptop.

Rendezvous is static: the ranks of nodes are known, and a gang that lost a member is started again as a whole by the
operator, under another attempt and therefore another rendezvous id. The supervisor runs the command as its child and
reports on it; where the attempt is followed in a file, it runs it again for every further one.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from galvatron_planner.cluster import Cluster, DeviceKind
from galvatron_planner.model import Precision

SUPERVISOR_MODULE = "galvatron_runtime.supervisor"
LAUNCH_MODULE = "galvatron_runtime.launch"
"""torchrun with ranks that are forked."""
TRAIN_MODULE = "galvatron_runtime.train"
MEASURE_MODULE = "galvatron_runtime.measure"
INSPECT_MODULE = "galvatron_runtime.inspection"

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- the operator and Prometheus reach a pod from outside

RENDEZVOUS_TIMEOUT_SECONDS = 1800
"""How long agents wait for the last one: pulling a runtime image takes minutes on a fresh node."""

AGENT_SECONDS = 10
"""What torchrun is given to end after the last of its ranks."""


class WhenFinished(StrEnum):
    """What the supervisor does when its command has ended."""

    PARK = "park"
    """Go on answering: a StatefulSet starts every container that exits again."""
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Launch:
    """One node's part of a distributed command.

    Attributes:
        module: the Python module that every rank runs.
        arguments: of the module.
        cluster: nodes, devices on each of them, and what a device is.
        node_rank: which node this is; text, because pods expand it from a variable.
        master_address: where node 0 is reached.
        master_port: where the agents meet on node 0.
        run_id: keeps agents of another attempt out; may hold ``ATTEMPT_PLACEHOLDER``.
        attempt: number of the attempt, reported by the supervisor; or the file in which it stands, and grows.
        supervisor_port: where the supervisor answers.
        supervisor_address: the interface it answers on.
        run_directory: where ranks leave what the supervisor reports.
        when_finished: whether the supervisor parks or exits.
        shutdown_timeout_seconds: from SIGTERM to SIGKILL for the ranks.
        termination_log: where the supervisor also leaves the final status, for the kubelet.
        python: the interpreter.
    """

    module: str
    arguments: tuple[str, ...]
    cluster: Cluster
    node_rank: str
    master_address: str
    master_port: int
    run_id: str
    attempt: int | PurePosixPath
    supervisor_port: int
    run_directory: str
    when_finished: WhenFinished
    supervisor_address: str = EVERYWHERE
    shutdown_timeout_seconds: int = 30
    termination_log: str | None = None
    python: str = "python"


def supervisor_command(launch: Launch) -> tuple[str, ...]:
    """Write the command of a pod, or of a local process: the supervisor around torchrun."""
    # Only other nodes need a name; their names are published a little later than their pods start. Node 0 may also
    # still be in the attempt before.
    wait = ("--wait-for", launch.master_address) if launch.cluster.num_nodes > 1 else ()
    log = ("--termination-log", launch.termination_log) if launch.termination_log is not None else ()
    # Without further attempts there is no use for one.
    spare = () if isinstance(launch.attempt, int) else ("--keep-spare",)
    return (
        *(launch.python, "-m", SUPERVISOR_MODULE),
        *("--address", launch.supervisor_address),
        *("--port", str(launch.supervisor_port)),
        *("--run-directory", launch.run_directory),
        *("--attempt" if isinstance(launch.attempt, int) else "--attempt-file", str(launch.attempt)),
        *("--node-rank", launch.node_rank),
        *wait,
        *log,
        *spare,
        *("--when-finished", launch.when_finished.value),
        *("--grace-seconds", str(launch.shutdown_timeout_seconds + AGENT_SECONDS)),
        "--",
        *torchrun_command(launch),
    )


def torchrun_command(launch: Launch) -> tuple[str, ...]:
    """Write the command that starts this node's ranks."""
    return (
        *(launch.python, "-m", LAUNCH_MODULE),
        *("--nnodes", str(launch.cluster.num_nodes)),
        *("--node-rank", launch.node_rank),
        *("--nproc-per-node", str(launch.cluster.devices_per_node)),
        *("--rdzv-backend", "static"),
        *("--rdzv-id", launch.run_id),
        *("--rdzv-conf", f"timeout={RENDEZVOUS_TIMEOUT_SECONDS}"),
        *("--master-addr", launch.master_address),
        *("--master-port", str(launch.master_port)),
        # The operator restarts the gang: torchrun alone would restart one node's ranks and hang the others'.
        *("--max-restarts", "0"),
        *("--shutdown-timeout", str(launch.shutdown_timeout_seconds)),
        *("-m", launch.module),
        *launch.arguments,
    )


def environment(launch: Launch) -> dict[str, str]:
    """Variables of the command, beside those that the user sets."""
    # Without it a restarted node cannot rebind the store's port (pytorch issues 135712 and 167288).
    shared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if launch.cluster.device_kind is not DeviceKind.CPU:
        return shared
    # A CPU device is one process on one core. Freed memory goes back at once, or resident memory says nothing about
    # what a plan holds: measured on 2 gloo ranks (torch 2.13), a ZeRO-3 run showed 288 MB instead of 163.
    return shared | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        # The record of past collectives, for NCCL's watchdog alone, grows by some 2 MB in the first 2000 of them.
        "TORCH_FR_BUFFER_SIZE": "0",
    }


def training_arguments(*, plan_path: str, training_path: str) -> tuple[str, ...]:
    """Arguments of the training module: documents 3 and 4."""
    return ("--plan", plan_path, "--training", training_path)


def measuring_arguments(*, request_path: str, output_path: str) -> tuple[str, ...]:
    """Arguments of the measuring module: document 1, and where document 2 goes."""
    return ("--request", request_path, "--output", output_path)


def inspecting_arguments(cluster: Cluster) -> tuple[str, ...]:
    """Arguments of the inspecting module: the GPUs that this node must have."""
    return ("--gpus", str(cluster.devices_per_node))


def reading_arguments(*, training_path: str, model_path: str, precision: Precision, directory: str) -> tuple[str, ...]:
    """Arguments of the inspecting module: document 4, its model, and where what is made of data goes."""
    return (
        *("--training", training_path),
        *("--model", model_path),
        *("--precision", precision.value),
        *("--directory", directory),
    )
