"""Nodes, kubelets and supervisors that are played: pods by the thousand that run nothing, for one API server to hold.

Everything between the operator and the pods is real: admission, the StatefulSet controller, the scheduler, garbage
collection. A played pod has an address of its own that leads to this machine, and one server answers for all of them.
"""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from benchmarks.api import MERGE, Api, Manifest, Refusal, every
from galvatron_operator import names
from galvatron_planner.worker import WorkerStatus

ADDRESSES = IPv4Network("10.246.0.0/16")
"""Beside the subnets of the test cluster's nodes, pods and Services."""
SUPERVISORS_PORT = 9464
GPU = "nvidia.com/gpu"
NODES = tuple(f"played-{index}" for index in range(4))
NODE_LABEL = "galvatron.io/played"
HEARTBEAT_SECONDS = 5.0
"""The test cluster gives a node up after 20 s without one."""

Script = Callable[[str, int, int, float], WorkerStatus]
"""What a supervisor says: of a job's name, its attempt, the pod's ordinal, and the seconds since the attempt began."""


@dataclass(slots=True)
class Played:
    """One pod that is played.

    Attributes:
        pod: the newest object.
        attempt: of the job, as the pod's annotation names it.
        since: when that began, by the monotonic clock.
    """

    pod: Manifest
    attempt: int
    since: float


@dataclass(slots=True)
class Players:
    """The kubelets of all played nodes, and the supervisors of their pods.

    A class because the watch of pods feeds what the server answers from.

    Attributes:
        api: of the cluster.
        script: what supervisors say.
        answers: how many times a supervisor was asked.
    """

    api: Api
    script: Script
    answers: int = 0
    _pods: dict[str, Played] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)
    _num_addresses: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def playing(self, namespace: str) -> AsyncIterator[None]:
        """Make the nodes and play until the context closes; then take everything away again."""
        route = ["ip", "route", "replace", "local", str(ADDRESSES), "dev", "lo"]
        subprocess.run(route, check=True)
        server = await asyncio.start_server(self._serve, "0.0.0.0", SUPERVISORS_PORT)  # noqa: S104 -- any address of pods
        for name in NODES:
            await self._make_node(name)
        tasks = [asyncio.create_task(self._keep_nodes()), asyncio.create_task(self._run_pods(namespace))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
            server.close()
            for name in NODES:
                with suppress(Refusal):
                    await self.api.request("DELETE", f"/api/v1/nodes/{name}")
            subprocess.run(["ip", "route", "del", "local", str(ADDRESSES), "dev", "lo"], check=True)

    async def _make_node(self, name: str) -> None:
        taint = {"key": NODE_LABEL, "value": "true", "effect": "NoSchedule"}
        labels = {NODE_LABEL: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        with suppress(Refusal):
            await self.api.request("POST", "/api/v1/nodes", {**node, "spec": {"taints": [taint]}})
        room = {"cpu": "10000", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": "10000", GPU: "100000"}
        condition = {"type": "Ready", "status": "True", "reason": "Played", "message": "", "lastHeartbeatTime": _now()}
        status = {"capacity": room, "allocatable": room, "conditions": [condition]}
        await self.api.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, MERGE)

    async def _keep_nodes(self) -> None:
        """Renew the Lease by which a node is known to live."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        async for _ in every(HEARTBEAT_SECONDS):
            for name in NODES:
                time_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": time_text}
                try:
                    await self.api.request("PATCH", f"{path}/{name}", {"spec": spec}, MERGE)
                except Refusal:
                    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
                    await self.api.request("POST", path, {**lease, "spec": spec})

    async def _run_pods(self, namespace: str) -> None:
        selector = f"labelSelector={names.LABEL_MANAGED_BY}%3D{names.MANAGER}"
        async for kind, pod in self.api.watch(f"/api/v1/namespaces/{namespace}/pods", selector):
            uid = pod["metadata"]["uid"]
            if kind == "DELETED":
                self._pods.pop(uid, None)
                self._addresses = {address: of for address, of in self._addresses.items() if of != uid}
            elif pod["spec"].get("nodeName") in NODES:
                self._take(uid, pod)

    def _take(self, uid: str, pod: Manifest) -> None:
        """Do what a kubelet does about a version of a pod."""
        attempt = int(pod["metadata"]["annotations"].get(names.ANNOTATION_ATTEMPT, 0))
        known = self._pods.get(uid)
        if known is None:
            self._num_addresses += 1
            address = str(IPv4Address(int(ADDRESSES.network_address) + 1 + self._num_addresses))
            self._addresses[address] = uid
            self._do(self._start(pod, address))
        if known is None or known.attempt != attempt:
            self._pods[uid] = Played(pod, attempt, time.monotonic())
        elif "deletionTimestamp" in pod["metadata"] and "deletionTimestamp" not in known.pod["metadata"]:
            self._do(self._end(pod))
            known.pod = pod

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, pod: Manifest, address: str) -> None:
        (container,) = pod["spec"]["containers"]
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": _now()}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ]
        running = {
            "name": container["name"],
            "image": container["image"],
            "imageID": f"{container['image']}@sha256:{'0' * 64}",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": _now()}},
        }
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": _now(),
            "conditions": conditions,
            "containerStatuses": [running],
        }
        with suppress(Refusal):
            await self.api.request("PATCH", f"{_path(pod)}/status", {"status": status}, MERGE)

    async def _end(self, pod: Manifest) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        with suppress(Refusal):
            await self.api.request("DELETE", _path(pod), options)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer for the pod that has the address which the connection was made to."""
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            played = self._pods.get(self._addresses.get(writer.get_extra_info("sockname")[0], ""))
            if played is None:
                writer.write(b"HTTP/1.0 404 Not Found\r\n\r\n")
            else:
                writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + self._answer(played).encode())
                self.answers += 1
            await writer.drain()
        writer.close()

    def _answer(self, played: Played) -> str:
        labels = played.pod["metadata"]["labels"]
        job, rank = labels[names.LABEL_JOB_NAME], int(labels[names.LABEL_POD_INDEX])
        return self.script(job, played.attempt, rank, time.monotonic() - played.since).to_json()


def _path(pod: Manifest) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
