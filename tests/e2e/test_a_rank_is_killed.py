"""One rank of eight vanishes: no pod is made anew, and the next attempt trains within seconds."""

import json
from collections.abc import Callable
from datetime import datetime

import pytest

from e2e.following import COMPONENT_LABEL, JOB_LABEL, follow, is_complete
from e2e.kubectl import Kubectl, Manifest, progress

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

NAME = "one-rank-killed"
VICTIM = 5
"""On the second pod."""
KILL = """
import os, pathlib, signal, sys, time
name = f"rank-{sys.argv[1]}"
(process,) = (int(f.parent.name) for f in pathlib.Path("/proc").glob("[0-9]*/comm") if f.read_text().strip() == name)
os.kill(process, signal.SIGKILL)
print(time.time())
"""


def test_a_killed_rank_costs_no_pod(
    kubectl: Kubectl, example: Manifest, record_property: Callable[[str, object], None]
) -> None:
    kubectl.apply(of_eight_processes(example))
    seen = follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 0, seconds=180)
    before = trainers(kubectl)

    killed = float(kubectl("exec", f"{NAME}-1", "--", "python", "-c", KILL, str(VICTIM)))
    follow(kubectl, NAME, until=is_second_attempt_under_way, seconds=120, seen=seen)

    assert trainers(kubectl) == before
    for pod in before:
        print(pod, when_first_said(kubectl, pod, since=killed))
    seconds = first_step_of_the_second_attempt(kubectl) - killed
    record_property("seconds_from_kill_to_first_step", round(seconds, 2))
    print(f"{seconds:.1f} s from the kill to the first step of the next attempt")
    assert seconds < 60
    job = follow(kubectl, NAME, until=is_complete, seconds=120, seen=seen).job
    assert (job["status"]["attempt"], job["status"]["restarts"]["total"]) == (2, 1)


def of_eight_processes(example: Manifest) -> Manifest:
    """A job of two pods with four processes each, which need no measurements, and train for a while."""
    spec = example["spec"]
    profiling = {"policy": "Never", "device": "cpu-core"}
    budget = {**spec["budget"], "gpus": 8, "gpusPerNode": 4}
    training = {**spec["training"], "steps": 200}
    changed = {"budget": budget, "training": training, "profiling": profiling}
    return {**example, "metadata": {"name": NAME}, "spec": {**spec, **changed}}


def trainers(kubectl: Kubectl) -> dict[str, str]:
    """The uid of every trainer, by name."""
    pods = kubectl.items("pods", f"{JOB_LABEL}={NAME},{COMPONENT_LABEL}=trainer")
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def is_second_attempt_under_way(job: Manifest) -> bool:
    """Tell whether steps are made again; the status first shows those of the first attempt."""
    conditions = {found["type"]: found for found in job["status"]["conditions"]}
    return bool(job["status"]["attempt"] == 2 and conditions["Training"]["status"] == "True")


def when_first_said(kubectl: Kubectl, pod: str, *, since: float) -> dict[str, float]:
    """Seconds after a moment at which a pod has first said what it says from then on."""
    said: dict[str, float] = {}
    for line in (json.loads(text) for text in kubectl("logs", pod).splitlines() if text.startswith("{")):
        seconds = datetime.fromisoformat(line["time"]).timestamp() - since
        if seconds > 0:
            said.setdefault(f"{line['message']} ({line.get('rank', 'supervisor')})"[:60], round(seconds, 2))
    return said


def first_step_of_the_second_attempt(kubectl: Kubectl) -> float:
    """When it was finished, by rank 0's log; seconds since the epoch."""
    lines = [json.loads(line) for line in kubectl("logs", f"{NAME}-0").splitlines() if line.startswith("{")]
    begun = next(line for line in lines if line["message"] == "command started" and line.get("attempt") == 2)
    later = lines[lines.index(begun) :]
    finished = next(line["time"] for line in later if line["message"] == "step finished")
    return datetime.fromisoformat(finished).timestamp()
