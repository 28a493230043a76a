"""kubectl as a library: whatever signs its user in, signs us in."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from galvatron_operator import names
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.errors import GalvatronError

RESOURCE = f"{names.PLURAL}.{names.API_GROUP}"


class KubectlFailed(GalvatronError):
    """kubectl is not there, or says no."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl against one cluster and namespace.

    Attributes:
        namespace: empty for the context's own.
        context: of the kubeconfig; empty for its current one.
    """

    namespace: str = ""
    context: str = ""

    def job(self, name: str) -> Manifest:
        """Read a GalvatronJob.

        Raises:
            KubectlFailed: when there is none of that name.
        """
        return self._read("get", RESOURCE, name)

    def jobs(self, *, everywhere: bool = False) -> tuple[Manifest, ...]:
        """Read the GalvatronJobs of the namespace, or of all.

        Raises:
            KubectlFailed: when they cannot be read.
        """
        everything = ("--all-namespaces",) if everywhere else ()
        return tuple(self._read("get", RESOURCE, *everything)["items"])

    def texts(self, config_map: str) -> dict[str, str]:
        """Read what a ConfigMap holds.

        Raises:
            KubectlFailed: when it is gone.
        """
        data: dict[str, str] = self._read("get", "configmap", config_map).get("data", {})
        return data

    def lines(self, *arguments: str) -> Iterator[str]:
        """Run a command that talks, and give its lines as they come.

        Raises:
            KubectlFailed: when it ends badly.
        """
        command = self._command(*arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603 -- ours
            last = ""
            for line in process.stdout or ():
                last = line.rstrip("\n")
                yield last
        if process.returncode:
            raise _failed(arguments, last)

    def _command(self, *arguments: str) -> list[str]:
        """Write a command line."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise KubectlFailed("there is no kubectl here", remedy="install kubectl, and let the PATH name it")
        place = [*(("--namespace", self.namespace) if self.namespace else ())]
        place += ("--context", self.context) if self.context else ()
        return [kubectl, *arguments, *place]

    def _read(self, *arguments: str) -> Manifest:
        command = self._command(*arguments, "--output", "json")
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
        if done.returncode:
            raise _failed(arguments, done.stderr)
        answer: Manifest = json.loads(done.stdout)
        return answer


def _failed(arguments: tuple[str, ...], said: str) -> KubectlFailed:
    """Say what kubectl said last: before that it repeats itself."""
    kept = "; pods are kept after the end while spec.lifecycle.podRetentionSeconds lasts"
    return KubectlFailed(
        f"kubectl {' '.join(arguments)}: {said.strip().rpartition(chr(10))[2]}",
        remedy=f"check name, namespace and context{kept if arguments[0] == 'logs' else ''}",
    )
