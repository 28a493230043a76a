"""Jobs whose own code fails on request, with their code in a ConfigMap and their training checkpoints on a volume."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from e2e.kubectl import Kubectl, Manifest

CODE = (
    Path(__file__).parents[2] / "docs" / "examples" / "own-model" / "convolutions.py",
    Path(__file__).parent / "faults" / "faulty.py",
)
CODE_DIRECTORY = "/opt/code"
SHARED = Path("/var/lib/galvatron-test-cluster/shared")
"""The same directory on all nodes of the test cluster."""
PERIOD_STEPS = 5

BODY: Manifest = {
    "apiVersion": "galvatron.io/v1alpha1",
    "kind": "GalvatronJob",
    "metadata": {"name": "faulty"},
    "spec": {
        "model": {"own": {"function": "faulty:layers"}, "sequenceLength": 32, "vocabularySize": 256},
        "budget": {"gpus": 4, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "64Mi"},
        "training": {
            "globalBatchSize": {"value": 8},
            "steps": 60,
            "precision": "FP32",
            "optimizer": {"learningRate": "3e-3"},
            "dataset": {"source": "PythonDocs"},
        },
        "checkpoint": {"volume": {"claimName": "checkpoints"}, "periodSteps": PERIOD_STEPS},
        "runtime": {
            "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}},
            "template": {
                "spec": {
                    "volumes": [{"name": "code", "configMap": {"name": "code"}}],
                    "containers": [
                        {
                            "name": "runtime",
                            "env": [{"name": "PYTHONPATH", "value": CODE_DIRECTORY}],
                            "volumeMounts": [{"name": "code", "mountPath": CODE_DIRECTORY}],
                        }
                    ],
                }
            },
        },
    },
}


class FaultyJobs:
    """Makes jobs in one namespace that differ in their fault alone, so that they are measured once."""

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        """Bring code and volume into the namespace, and describe the layers.

        Args:
            kubectl: of the namespace.
            folder: for files in between.
        """
        self._kubectl = kubectl
        self._described = described(folder)
        self.checkpoints = SHARED / kubectl.namespace
        self.checkpoints.mkdir()
        self.checkpoints.chmod(0o1777)
        files = {path.name: path.read_text() for path in CODE}
        kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": files})
        volume = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": ""}
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": kubectl.namespace},
                "spec": {**volume, "hostPath": {"path": str(self.checkpoints)}},
            }
        )
        claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": kubectl.namespace}
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "checkpoints"},
                "spec": {**claim, "resources": {"requests": {"storage": "1Gi"}}},
            }
        )

    def start(
        self,
        name: str,
        fault: str = "",
        *,
        steps: int = 60,
        cpu: str = "200m",
        memory_limit: str | None = None,
        **spec: Any,
    ) -> None:
        """Apply a job.

        Args:
            name: of the job.
            fault: ``KIND:RANK:STEP`` as in ``faults/faulty.py``.
            steps: of training.
            cpu: that every pod asks for.
            memory_limit: of every pod, None for none.
            spec: replaces whole fields.
        """
        body = self._described["spec"]
        env = [{"name": "FAULT", "value": fault}] if fault else []
        limits = {"limits": {"memory": memory_limit}} if memory_limit else {}
        requests = {"requests": {**body["runtime"]["resources"]["requests"], "cpu": cpu}}
        runtime = {**body["runtime"], "env": env, "resources": {**requests, **limits}}
        self._kubectl.apply(
            {
                **self._described,
                "metadata": {"name": name},
                "spec": {
                    **body,
                    "runtime": runtime,
                    "training": {**body["training"], "steps": steps},
                    "checkpoint": {**body["checkpoint"], "directory": name},
                    **spec,
                },
            }
        )

    def saved_steps(self, name: str) -> list[int]:
        """Steps whose training checkpoints are complete."""
        return sorted(int(path.name.rpartition("-")[2]) for path in (self.checkpoints / name).glob("step-*"))

    def remove(self) -> None:
        """Take back what lies outside the namespace."""
        self._kubectl("delete", "persistentvolume", self._kubectl.namespace, "--wait=false")
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def described(folder: Path) -> Manifest:
    """The job with its layers filled in, as a user would do it before applying it."""
    for path in CODE:
        shutil.copy(path, folder)
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(BODY))
    command = [sys.executable, "-m", "galvatron_operator.cli", "describe", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    described_job: Manifest = yaml.safe_load(done.stdout)
    return described_job


Space = tuple[Kubectl, FaultyJobs]
"""A namespace, and the jobs in it."""
