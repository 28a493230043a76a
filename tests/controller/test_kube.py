"""What the answers of an API server mean, and what a process must be able to read of it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from kubernetes.dynamic.exceptions import DynamicApiError

from galvatron_operator import kube
from galvatron_operator.reconcile import Conflict, Forbidden, NotFound, Refused, Unreachable

# As Kubernetes 1.34 answers an applied StatefulSet.
TWICE = "failed to create typed patch object (a/b; apps/v1, Kind=StatefulSet): .spec: duplicate entries for key"


@pytest.mark.parametrize(
    ("status", "message", "meaning"),
    [
        (404, "not found", NotFound),
        (409, "conflict", Conflict),
        (403, "exceeded quota", Forbidden),
        (422, "is invalid", Refused),
        (500, "etcdserver: leader changed", Unreachable),
        (500, TWICE, Refused),
    ],
)
def test_what_will_never_be_taken_is_told_from_what_may_pass(status: int, message: str, meaning: type) -> None:
    answer = SimpleNamespace(status=status, reason="", body=json.dumps({"message": message}), headers={})
    error = DynamicApiError(answer)  # type: ignore[no-untyped-call]  # the client has no types
    assert type(kube._translate(error, "PATCH /x")) is meaning


READS_DEEP_JSON = """
import copy, json, threading
from controller.bodies import job_body
from galvatron_operator import kube
from galvatron_operator.api import parse
from galvatron_planner.errors import InvalidInput

def read():
    depth = kube.MAX_DEPTH - 10
    deep = json.loads('{"a":' * depth + "1" + "}" * depth)
    body = copy.deepcopy(job_body({"spec.runtime": {"template": {"spec": {"affinity": deep}}}}))
    try:
        parse(body)
    except InvalidInput as refusal:
        print(refusal)

kube.take_deep_objects()
read()
beside = threading.Thread(target=read)  # requests are sent from threads
beside.start()
beside.join()
"""


def test_a_job_of_ten_thousand_levels_is_read_and_refused_by_itself() -> None:
    # In a process of its own: the limit is the whole process's.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READS_DEEP_JSON]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all("recursion limit" in line and len(line) < 500 for line in said)
