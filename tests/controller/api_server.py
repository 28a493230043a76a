"""The real API server, for the tests that need one."""

import os

import pytest
from kubernetes import client, config


def connected() -> client.ApiClient:
    """Connect to the cluster that ``GALVATRON_KUBECONFIG`` or ``KUBECONFIG`` names."""
    path = os.environ.get("GALVATRON_KUBECONFIG") or os.environ.get("KUBECONFIG")
    if path is None:
        pytest.fail('neither GALVATRON_KUBECONFIG nor KUBECONFIG is set: eval "$(tests/cluster/cluster.sh env)"')
    api_client: client.ApiClient = config.new_client_from_config(path)  # type: ignore[no-untyped-call]  # the client has no types
    return api_client
