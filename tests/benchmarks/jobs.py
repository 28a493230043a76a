"""A thousand jobs on the real API server: how fast the operator is, and whether its memory stays flat.

    cd tests && python -m benchmarks.jobs [--jobs N] [--minutes N]

Needs root and the test cluster (``tests/cluster/cluster.sh up``), not its images: pods are played (``played.py``), so
that a small machine holds a thousand; the operator is a process beside the cluster, with the rights of the chart. Most
jobs train on and on, some fail once and restart in place, some end and are deleted, and others come instead.
"""

import argparse
import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory

from benchmarks.api import APPLY, Api, Manifest, api_of
from benchmarks.operated import (
    Operated,
    Sample,
    Scrape,
    bring_rights,
    kubeconfig_of_the_operator,
    operating,
    quantile,
    requests,
    scrape,
)
from benchmarks.played import NODE_LABEL, Players
from e2e.installation import standing_cluster
from e2e.kubectl import Kubectl, is_true
from galvatron_planner.worker import ExitClass, Progress, WorkerFailure, WorkerState, WorkerStatus

SHAPES = 8
"""Models of different depth, each planned once: jobs that ask the same share an answer."""
RESTARTING, ENDING = "restarting", "ending"
SHARES = {RESTARTING: 0.05, ENDING: 0.05}
"""The others train on."""
FAILS_AFTER_SECONDS = 90.0
STEPS = {RESTARTING: 100_000, ENDING: 60, "lasting": 100_000}
"""One a second."""
WARM_UP_SECONDS = 60.0
SAMPLE_SECONDS = 5.0
SCRAPE_SECONDS = 15.0
ROUND = "galvatron_operator_reconcile_duration_seconds"
WAIT = "galvatron_operator_queue_wait_seconds"


def script(job: str, attempt: int, rank: int, seconds: float) -> WorkerStatus:
    """What the supervisor of a pod says."""
    kind = job.partition("-")[0]
    step, total = int(seconds), STEPS[kind]
    progress = Progress(activity="training", step=min(step, total), total_steps=total, loss=2.5, step_seconds=1.0)
    if kind == RESTARTING and attempt == 1 and seconds > FAILS_AFTER_SECONDS:
        failure = WorkerFailure(reason=ExitClass.COMMUNICATION, message="played", exit_code=1, time=time.time())
        state = WorkerState.FAILED
    else:
        failure, state = None, WorkerState.SUCCEEDED if step >= total else WorkerState.RUNNING
    return WorkerStatus(attempt=attempt, node_rank=rank, state=state, progress=progress, failure=failure)


def body(kind: str, number: int) -> Manifest:
    """A job of one or two pods that is planned from data sheets."""
    return {
        "apiVersion": "galvatron.io/v1alpha1",
        "kind": "GalvatronJob",
        "metadata": {"name": f"{kind}-{number}"},
        "spec": {
            "model": {
                "family": "gpt",
                "hiddenSize": 1024,
                "numLayers": 4 + number % SHAPES,
                "numAttentionHeads": 16,
                "sequenceLength": 512,
            },
            "budget": {"gpus": 2 + 2 * (number % 4 == 0), "gpusPerNode": 2, "memoryPerGPU": "70Gi"},
            "training": {"globalBatchSize": {"value": 16}, "steps": STEPS[kind]},
            "profiling": {"policy": "Never", "device": "a100-80gb"},
            "runtime": {
                "nodeSelector": {NODE_LABEL: "true"},
                "tolerations": [{"key": NODE_LABEL, "operator": "Exists"}],
            },
            "lifecycle": {"ttlSecondsAfterFinished": 5},
        },
    }


@dataclass(slots=True)
class Fleet:
    """The jobs of one namespace, kept at one number.

    A class because the watch of jobs feeds what the others look at.

    Attributes:
        api: of the cluster.
        namespace: of the jobs.
        jobs: the newest version of each.
        num_ended: jobs that ended and were deleted, each of which another one replaced.
    """

    api: Api
    namespace: str
    jobs: dict[str, Manifest] = field(default_factory=dict)
    num_ended: int = 0
    _next: int = 0
    _closing: bool = False

    @property
    def path(self) -> str:
        """Of the namespace's jobs."""
        return f"/apis/galvatron.io/v1alpha1/namespaces/{self.namespace}/galvatronjobs"

    async def create(self, kind: str) -> None:
        """Create a job, as its user."""
        number, self._next = self._next, self._next + 1
        job = body(kind, number)
        path = f"{self.path}/{job['metadata']['name']}?fieldManager=user"
        await self.api.request("PATCH", path, job, APPLY)

    async def create_all(self, num_jobs: int) -> None:
        """Create all jobs, eight at a time."""
        kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * num_jobs))]
        kinds += ["lasting"] * (num_jobs - len(kinds))
        waiting = asyncio.Semaphore(8)

        async def one(kind: str) -> None:
            async with waiting:
                await self.create(kind)

        await asyncio.gather(*(one(kind) for kind in kinds))

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the jobs, and replace those that go, as long as the context is open."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        async for kind, job in self.api.watch(self.path):
            name = job["metadata"]["name"]
            if kind != "DELETED":
                self.jobs[name] = job
            elif self.jobs.pop(name, None) is not None:
                self.num_ended += 1
                await self.create(ENDING)

    def number(self, condition: str) -> int:
        """How many jobs have a condition."""
        return sum(is_true(job, condition) for job in self.jobs.values())

    def restarts(self) -> int:
        """How often jobs that exist were started again."""
        return sum(job.get("status", {}).get("restarts", {}).get("total", 0) for job in self.jobs.values())

    async def until(self, condition: str, num_jobs: int, *, seconds: float) -> float:
        """Wait until so many jobs have a condition, and return how long that took."""
        started = time.monotonic()
        while self.number(condition) < num_jobs:
            found = self.number(condition)
            assert time.monotonic() - started < seconds, f"{found} of {num_jobs} are {condition} after {seconds} s"
            await asyncio.sleep(0.5)
        return time.monotonic() - started


@dataclass(slots=True)
class Window:
    """What was seen while all jobs trained."""

    samples: list[Sample] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples[-1].time - self.samples[0].time

    def rise(self, name: str, **labels: str) -> float:
        """By how much a counter rose."""
        return self.scrapes[-1].total(name, **labels) - self.scrapes[0].total(name, **labels)


async def watch_operator(operated: Operated, *, seconds: float) -> Window:
    """Sample the operator for a while, and scrape it as Prometheus would."""
    window = Window()
    end, next_scrape = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        if time.monotonic() >= next_scrape:
            next_scrape = time.monotonic() + SCRAPE_SECONDS
            window.scrapes.append(await asyncio.to_thread(scrape))
        window.samples.append(operated.sample())
        await asyncio.sleep(SAMPLE_SECONDS)
    window.scrapes.append(await asyncio.to_thread(scrape))
    window.samples.append(operated.sample())
    return window


async def measure(num_jobs: int, minutes: float, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Run everything and return the rows of the table."""
    kubectl = Kubectl(environment, f"jobs-{uuid.uuid4().hex[:8]}")
    namespace = kubectl.namespace
    kubectl("create", "namespace", namespace)
    bring_rights(kubectl, namespace)
    kubeconfig = kubeconfig_of_the_operator(environment, folder)
    rows: dict[str, str] = {}
    log = folder / "operator.log"
    async with api_of(Path(environment["KUBECONFIG"])) as api:
        players, fleet = Players(api, script), Fleet(api, namespace)
        try:
            async with players.playing(namespace):
                async with operating(kubeconfig, watched=namespace, log=log) as operated:
                    rows["start, no jobs"] = f"{operated.start_seconds:.1f} s, {operated.sample().resident_mib:.0f} MiB"
                    async with fleet.followed():
                        rows |= await begin(fleet, num_jobs)
                        await asyncio.sleep(WARM_UP_SECONDS)
                        window = await watch_operator(operated, seconds=60 * minutes)
                        rows |= told(window, fleet)
                async with operating(kubeconfig, watched=namespace, log=log) as again:
                    rows["start, all jobs"] = f"{again.start_seconds:.1f} s, {again.sample().resident_mib:.0f} MiB"
                started = time.monotonic()
                # Beside the loop: kubelets are played on it, and the namespace waits for them.
                await asyncio.to_thread(kubectl, "delete", "namespace", namespace, "--wait=true", "--timeout=280s")
                rows["namespace deleted, no operator"] = f"{time.monotonic() - started:.0f} s"
        finally:
            kubectl.run("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
    return rows


async def begin(fleet: Fleet, num_jobs: int) -> dict[str, str]:
    """Create all jobs and wait until they train."""
    before = await asyncio.to_thread(scrape)
    started = time.monotonic()
    await fleet.create_all(num_jobs)
    created = time.monotonic() - started
    await fleet.until("Accepted", num_jobs, seconds=300)
    accepted = time.monotonic() - started
    await fleet.until("PlanReady", num_jobs, seconds=600)
    planned = time.monotonic() - started
    await fleet.until("Training", round(num_jobs * 0.9), seconds=900)
    trained = time.monotonic() - started
    after = await asyncio.to_thread(scrape)
    return {
        "all jobs created": f"{created:.0f} s",
        "all accepted": f"{accepted:.0f} s",
        "all planned": f"{planned:.0f} s",
        "90 % train": f"{trained:.0f} s",
        "round until then": spread(before, after, ROUND),
    }


def spread(before: Scrape, after: Scrape, name: str) -> str:
    """The middle and the slow end of a histogram between two scrapes."""
    middle, slow = (quantile(before, after, name, share) for share in (0.5, 0.99))
    return f"p50 {middle:.3f} s, p99 {slow:.3f} s"


def told(window: Window, fleet: Fleet) -> dict[str, str]:
    """Turn a window into rows."""
    first, last = window.samples[0], window.samples[-1]
    rounds, cpu_seconds = window.rise(f"{ROUND}_count"), last.cpu_seconds - first.cpu_seconds
    slope = linear_regression([s.time for s in window.samples], [s.resident_mib for s in window.samples]).slope
    verbs = requests(since=first.time, until=last.time)
    failed = {
        result: window.rise("galvatron_operator_reconcile_total", result=result)
        for result in ("Conflict", "NotFound", "Unreachable", "Refused", "Forbidden", "Bug")
    }
    return {
        "jobs in the window": f"{len(fleet.jobs)}, {fleet.number('Training')} train, {fleet.num_ended} have ended",
        "restarts": f"{fleet.restarts()}",
        "window": f"{window.seconds:.0f} s",
        "rounds": f"{rounds / window.seconds:.0f} a second",
        "round": spread(window.scrapes[0], window.scrapes[-1], ROUND),
        "wait in the queue": spread(window.scrapes[0], window.scrapes[-1], WAIT),
        "rounds repeated": ", ".join(f"{name} {count:.0f}" for name, count in failed.items() if count) or "none",
        "CPU": f"{cpu_seconds / window.seconds:.2f} cores, {1e3 * cpu_seconds / max(rounds, 1):.1f} ms a round",
        "memory": f"{first.resident_mib:.0f} to {last.resident_mib:.0f} MiB, {60 * slope:+.2f} MiB a minute",
        "memory, minute by minute": ", ".join(
            f"{s.resident_mib:.0f}" for s in window.samples[:: round(60 / SAMPLE_SECONDS)]
        ),
        "requests a second": ", ".join(f"{verb} {n / window.seconds:.1f}" for verb, n in sorted(verbs.items())),
        "scrape of the metrics": f"{max(scrape.seconds for scrape in window.scrapes):.2f} s at most",
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--log", type=Path, help="keep the operator's log in this directory")
    options = parser.parse_args()
    called = f"python -m benchmarks.jobs --jobs {options.jobs} --minutes {options.minutes:g}"
    print(f"{called}  ({date.today().isoformat()}, {os.cpu_count()} cores)\n", flush=True)  # noqa: DTZ011
    with TemporaryDirectory(prefix="galvatron-jobs-") as name:
        folder = options.log or Path(name)
        rows = asyncio.run(measure(options.jobs, options.minutes, standing_cluster(), folder))
    print("| | |\n|---|---|")
    for title, value in rows.items():
        print(f"| {title} | {value} |")


if __name__ == "__main__":
    main()
