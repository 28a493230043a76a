"""kubectl as a typed function, and waiting with a deadline; the tests see the cluster as a user does."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Manifest = dict[str, Any]
T = TypeVar("T")

POLL_SECONDS = 1.0
"""Between two looks at the cluster; kubectl takes 0.2 s of a core that trainers share."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl against one cluster and one namespace.

    Attributes:
        environment: selects the cluster (``KUBECONFIG``, ``PATH``).
        namespace: of everything that is not named otherwise.
    """

    environment: Mapping[str, str]
    namespace: str

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command and let the caller judge its outcome."""
        return subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            env=dict(self.environment),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command that has to succeed, and return what it prints."""
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def apply(self, manifest: Manifest) -> None:
        """Apply one object; JSON is YAML."""
        self("apply", "--filename", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str) -> Manifest | None:
        """Read one object, or None when there is none of that name."""
        text = self("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(text) if text else None

    def items(self, kinds: str, selector: str = "") -> tuple[Manifest, ...]:
        """List objects of some kinds (``pods,jobs``) by label selector."""
        arguments = ["--selector", selector] if selector else []
        return tuple(json.loads(self("get", kinds, "--output", "json", *arguments))["items"])


def wait_until(claim: str, seconds: float, look: Callable[[], T | None]) -> T:
    """Look until there is something to see, and return it.

    Raises:
        AssertionError: when there is nothing after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        if seen := look():
            return seen
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {claim}"
        time.sleep(POLL_SECONDS)


def condition(job: Manifest | None, kind: str) -> Manifest:
    """One condition of a GalvatronJob; empty before the operator has set it."""
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})


def is_true(job: Manifest | None, kind: str) -> bool:
    """Tell whether a condition holds."""
    return bool(condition(job, kind).get("status") == "True")


def progress(job: Manifest | None) -> Manifest:
    """``status.progress``; empty before the first report."""
    found: Manifest = (job or {}).get("status", {}).get("progress", {})
    return found
