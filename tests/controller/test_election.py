"""One candidate with its real threads: it leads, ends in time whatever hangs, and gives back; writes are guarded."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from kubernetes import client

from fakes.lease import FakeLeases
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.election import Election
from galvatron_operator.kube import KubernetesCluster
from galvatron_operator.lease import NOBODY, Timing
from galvatron_operator.reconcile import NotLeading

QUICK = Timing(lease_seconds=1.5, leading_seconds=1.0, retry_seconds=0.1)
DEADLINE_SECONDS = 20.0
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "b"}}


def eventually(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.005)


@contextmanager
def taking_part(leases: FakeLeases, me: str, lost: threading.Event | None = None) -> Iterator[Election]:
    ended = lost or threading.Event()
    election = Election(leases, me, when_lost=ended.set, timing=QUICK)
    election.start()
    try:
        yield election
    finally:
        leases.answers.set()
        election.leave()
        assert lost is not None or not ended.is_set()


def test_one_of_two_leads_and_the_other_follows_at_once_when_it_leaves() -> None:
    leases = FakeLeases()
    with taking_part(leases, "first") as first:
        eventually(first.leads)
        with taking_part(leases, "second") as second:
            eventually(lambda: not not_well(second))
            assert not second.leads()
            first.leave()
            assert leases.lease is not None
            assert leases.lease.holder == NOBODY
            eventually(second.leads)


def test_a_leader_whose_request_hangs_ends_in_time() -> None:
    leases, lost = FakeLeases(), threading.Event()
    with taking_part(leases, "me", lost) as election:
        eventually(election.leads)
        leases.answers.clear()
        started = time.monotonic()
        assert lost.wait(DEADLINE_SECONDS)
        assert time.monotonic() - started < QUICK.lease_seconds
        with pytest.raises(NotLeading):
            election.check()


def test_a_leader_that_cannot_reach_the_api_server_ends_in_time() -> None:
    leases, lost = FakeLeases(), threading.Event()
    with taking_part(leases, "me", lost) as election:
        eventually(election.leads)
        leases.is_away = True
        assert lost.wait(DEADLINE_SECONDS)
        assert not election.leads()


def test_a_leader_whose_lease_is_taken_ends() -> None:
    leases, lost = FakeLeases(), threading.Event()
    with taking_part(leases, "me", lost) as election:
        eventually(election.leads)
        held = leases.lease
        assert held is not None
        leases.lease = replace(held, holder="other", version="9999")
        assert lost.wait(DEADLINE_SECONDS)
        assert leases.lease.holder == "other"


def test_a_short_outage_is_no_end() -> None:
    leases = FakeLeases()
    with taking_part(leases, "me") as election:
        eventually(election.leads)
        before = leases.lease
        leases.is_away = True
        threading.Event().wait(3 * QUICK.retry_seconds)
        leases.is_away = False
        eventually(lambda: leases.lease != before)
        election.check()


def test_a_candidate_that_has_never_seen_the_lease_is_not_well() -> None:
    leases = FakeLeases()
    leases.is_away = True
    with taking_part(leases, "me") as election:
        assert not_well(election)
        leases.is_away = False
        eventually(lambda: not not_well(election))


def not_well(election: Election) -> bool:
    try:
        election.check_heartbeat()
    except RuntimeError:
        return True
    return False


@contextmanager
def api_server() -> Iterator[tuple[str, list[str]]]:
    """A server that takes everything and keeps the methods by which it was asked."""
    methods: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            methods.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(CONFIG_MAP).encode())

        do_GET = do_PATCH = do_DELETE = answer  # noqa: N815 -- names of http.server

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", methods
        server.shutdown()
        thread.join()


def test_what_does_not_lead_reads_and_sends_no_write() -> None:
    ref = ObjectRef(Kind.CONFIG_MAP, "b", "a")
    with api_server() as (address, methods), taking_part(FakeLeases(), "me", threading.Event()) as election:
        configuration = client.Configuration(host=address)
        cluster = KubernetesCluster(client.ApiClient(configuration), before_write=election.check)
        eventually(election.leads)
        asyncio.run(cluster.apply(CONFIG_MAP))
        assert methods == ["PATCH"]
        election.leave()
        eventually(lambda: not election.leads())
        for request in (cluster.apply(CONFIG_MAP), cluster.delete(ref)):
            with pytest.raises(NotLeading):
                asyncio.run(request)
        assert asyncio.run(cluster.get(ref)) == CONFIG_MAP
        assert methods == ["PATCH", "GET"]
