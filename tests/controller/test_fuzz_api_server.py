"""A real API server and ``parse`` agree about jobs that may say anything.

What the API server takes, ``parse`` takes or refuses with a remedy: it knows more (the catalogue, templates of pods).
What ``parse`` takes, the API server takes: a job that was validated without a cluster is not refused by one.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from controller.api_server import connected
from controller.bodies import Body, job_body
from fuzzing.bodies import Fuzzed, fuzzed
from fuzzing.schema import OBJECT, as_received, refusals, with_defaults
from galvatron_operator.api import parse
from galvatron_planner.errors import InvalidInput

pytestmark = pytest.mark.k8s

SEED = 7
NUMBER = 300
CRD = Path(__file__).parents[2] / "crds" / "galvatronjobs.yaml"
GROUP = "fuzz-test.galvatron.io"
"""Not the real one: the CRD of an installed chart is left alone."""
PLURAL = "galvatronjobs"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server makes of a job: the object with its defaults, or why it is refused."""

    job: Fuzzed
    stored: Body | None
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.job.changes}: {self.refusal or self.stored}"


@pytest.fixture(scope="module")
def api_client() -> Iterator[client.ApiClient]:
    """The cluster that ``GALVATRON_KUBECONFIG`` or ``KUBECONFIG`` names, with our CRD in a group of its own."""
    found = connected()
    crd = yaml.safe_load(CRD.read_text())
    crd["metadata"]["name"] = f"{PLURAL}.{GROUP}"
    crd["spec"]["group"] = GROUP
    crd["spec"]["names"].pop("shortNames")
    crd["spec"]["names"].pop("categories")
    definitions = client.ApiextensionsV1Api(found)
    definitions.create_custom_resource_definition(crd)
    try:
        wait_until_served(found)
        yield found
    finally:
        definitions.delete_custom_resource_definition(crd["metadata"]["name"])


@pytest.fixture(scope="module")
def answers(api_client: client.ApiClient) -> tuple[Answer, ...]:
    print(f"seed {SEED}, {NUMBER} jobs")
    return tuple(create(api_client, job) for job in fuzzed(SEED, NUMBER))


def wait_until_served(api_client: client.ApiClient) -> None:
    right, deadline = Fuzzed((), job_body()), time.monotonic() + 30
    while (answer := create(api_client, right)).stored is None:
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)


def create(api_client: client.ApiClient, job: Fuzzed) -> Answer:
    """Create a job without storing it, as kubectl does: unknown fields are refused."""
    metadata = {"name": job.body["metadata"]["name"], "namespace": "default"}
    document = job.body | {"apiVersion": f"{GROUP}/v1alpha1", "metadata": metadata}
    try:
        stored: Any = client.CustomObjectsApi(api_client).create_namespaced_custom_object(
            GROUP, "v1alpha1", "default", PLURAL, document, dry_run="All", field_validation="Strict"
        )
    except client.ApiException as error:
        return Answer(job, None, f"{error.status}: {message_of(error)}")
    return Answer(job, stored | {"apiVersion": job.body["apiVersion"]})


def message_of(error: client.ApiException) -> str:
    """What the API server says; for a resource that it does not serve yet it answers with plain text."""
    try:
        return str(json.loads(error.body or "")["message"])
    except ValueError:
        return str(error.body or error)


def refusal_of(body: Body) -> InvalidInput | None:
    """What ``parse`` has against a job for a cluster; it raises nothing else."""
    try:
        parse(body).check_for_cluster()
    except InvalidInput as error:
        return error
    return None


def test_the_api_server_takes_a_good_share_and_refuses_a_good_share(answers: tuple[Answer, ...]) -> None:
    taken = sum(answer.stored is not None for answer in answers)
    print(f"{taken} of {NUMBER} got past the API server")
    assert 0.3 * NUMBER < taken < 0.7 * NUMBER


def test_every_refusal_is_about_the_job(answers: tuple[Answer, ...]) -> None:
    assert [str(one) for one in answers if one.refusal and one.refusal.partition(":")[0] not in ("400", "422")] == []


def test_what_the_api_server_takes_is_read_or_refused_with_a_remedy(answers: tuple[Answer, ...]) -> None:
    taken = [answer.stored for answer in answers if answer.stored is not None]
    refused = [refusal for refusal in map(refusal_of, taken) if refusal is not None]
    assert all(refusal.remedy for refusal in refused)
    assert 0 < len(refused) < 0.4 * len(taken)


def test_what_is_read_for_a_cluster_the_api_server_takes(answers: tuple[Answer, ...]) -> None:
    assert [str(one) for one in answers if one.stored is None and refusal_of(one.job.body) is None] == []


def test_the_fake_schema_check_refuses_nothing_that_the_api_server_takes(answers: tuple[Answer, ...]) -> None:
    for one in answers:
        if one.stored is not None:
            written = as_received(one.job.body, OBJECT)
            assert list(refusals(written, OBJECT, "")) == [], one
            assert with_defaults(written, OBJECT)["spec"] == one.stored["spec"], one
