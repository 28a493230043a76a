"""A pod that is deleted by force while its kubelet is away trains on beside the one that takes its name, in vain."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.faulty_jobs import Space
from e2e.following import follow
from e2e.kubectl import Kubectl, Manifest, is_true, progress, wait_until
from e2e.processes import first_process, is_alive

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("GALVATRON_KUBECONFIG")), reason="kubelets are out of reach"),
]

NAME = "twice"
ASK = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/v1/status", timeout=5).read().decode())
"""


def test_the_elder_of_two_pods_of_one_name_can_neither_go_on_nor_overwrite(space: Space, example: Manifest) -> None:
    kubectl, jobs = space
    kubectl.apply(of_one_pod(example))
    follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 0, seconds=120)
    elder = kubectl.get("pod", f"{NAME}-0") or {}
    process = first_process(elder)

    with kubelet_stopped(kubectl, elder["spec"]["nodeName"]):
        kubectl("delete", "pod", f"{NAME}-0", "--grace-period=0", "--force")
        job = follow(kubectl, NAME, until=trains_again, seconds=120).job
        assert job["status"]["failures"][0]["reason"] == "PodLost"
        assert (kubectl.get("pod", f"{NAME}-0") or {})["metadata"]["uid"] != elder["metadata"]["uid"]

        # The container of the elder is still there, and has been told nothing.
        said = wait_until("the elder ends", 60, lambda: ended(process, port_of(elder)))
        assert is_alive(process)
        assert said["attempt"] == 1
        assert "another attempt has claimed it" in said["failure"]["message"]
        directory = jobs.checkpoints / NAME
        assert [path.name.split("-")[1] for path in directory.glob(".claim-*")] == ["2"]
        assert not list(directory.glob(".step-*.attempt-1-*"))
        saved = jobs.saved_steps(NAME)[-1]
        wait_until("the younger goes on saving", 60, lambda: jobs.saved_steps(NAME)[-1] > saved)
    wait_until("the kubelet ends the elder", 60, lambda: not is_alive(process))
    job = kubectl.get("galvatronjob", NAME) or {}
    assert job["status"]["attempt"] == 2
    kubectl("delete", "galvatronjob", NAME)


def of_one_pod(example: Manifest) -> Manifest:
    """A job whose pod has no peers that it could lose: only the claim on its directory is between two attempts."""
    spec = example["spec"]
    changed = {
        "budget": {**spec["budget"], "gpus": 2, "gpusPerNode": 2, "memoryPerGPU": "256Mi"},
        "training": {**spec["training"], "steps": 100_000},
        "profiling": {"policy": "Never", "device": "cpu-core"},
        "checkpoint": {"volume": {"claimName": "checkpoints"}, "directory": NAME, "periodSteps": 5},
    }
    return {**example, "metadata": {"name": NAME}, "spec": {**spec, **changed}}


def trains_again(job: Manifest) -> bool:
    """Tell whether the second attempt makes steps."""
    return bool(job["status"]["attempt"] == 2 and is_true(job, "Training"))


@contextmanager
def kubelet_stopped(kubectl: Kubectl, node: str) -> Iterator[None]:
    """Let a kubelet do nothing, while the containers of its node go on."""
    kubelet = kubelet_of(node)
    # The scheduler learns of it late; a new pod there would wait for the kubelet.
    kubectl("cordon", node)
    os.kill(kubelet, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(kubelet, signal.SIGCONT)
        kubectl("uncordon", node)


def kubelet_of(node: str) -> int:
    """The host's number of a node's kubelet."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if is_kubelet(path, f"--hostname-override={node}")
    ]
    assert len(found) == 1, f"{node} has kubelets {found}"
    return found[0]


def is_kubelet(command_line: Path, option: str) -> bool:
    """Tell whether a process is a kubelet that was started with an option."""
    try:
        words = command_line.read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[0].endswith("/kubelet") and option in words


def port_of(pod: Manifest) -> int:
    """Where the pod's supervisor answers."""
    ports = pod["spec"]["containers"][0]["ports"]
    return int(next(port["containerPort"] for port in ports if port["name"] == "metrics"))


def ended(process: int, port: int) -> Manifest | None:
    """What a supervisor says, asked within its pod's network; None while its command runs."""
    command = ["nsenter", "--net", f"--target={process}", "python3", "-c", ASK, str(port)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if asked.returncode:
        return None
    status: Manifest = json.loads(asked.stdout)
    return status if status["state"] == "Failed" else None
