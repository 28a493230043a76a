"""What a person wants to read when one of these tests fails."""

from collections.abc import Iterator

from e2e.installation import OPERATOR_NAMESPACE
from e2e.kubectl import Kubectl

LINES = "80"
"""Of each log."""


def sections(kubectl: Kubectl) -> Iterator[tuple[str, str]]:
    """Titles and texts: the operator's log, then jobs, events and the logs of every pod that is left."""
    operator = Kubectl(kubectl.environment, OPERATOR_NAMESPACE)
    yield "operator", _say(operator, "get", "pods", "--output", "wide")
    yield (
        "operator's log",
        _say(operator, "logs", "--selector", "app.kubernetes.io/component=operator", "--tail", LINES),
    )
    yield "jobs", _say(kubectl, "describe", "galvatronjobs")
    yield "objects", _say(kubectl, "get", "pods,jobs,statefulsets,services,configmaps", "--output", "wide")
    yield "events", _say(kubectl, "get", "events", "--sort-by=.lastTimestamp")
    for pod in _say(kubectl, "get", "pods", "--output", "name").split():
        yield f"log of {pod}", _say(kubectl, "logs", pod, "--all-containers", "--tail", LINES)


def _say(kubectl: Kubectl, *arguments: str) -> str:
    result = kubectl.run(*arguments)
    return result.stdout + result.stderr
