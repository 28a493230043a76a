"""Tells Prometheus what to scrape: the pods and endpoints that a monitor selects, by HTTP service discovery.

Debian builds Prometheus without the discovery of Kubernetes, so this module does that part too, with the labels
(``__meta_kubernetes_...``) that Prometheus' own discovery gives to its targets and that monitors refer to.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from kubernetes import client, config

from e2e.kubectl import Manifest

META = "__meta_kubernetes"
PORT_NAME = f"{META}_port_name"
"""Label with the name of the port; Prometheus has one for each kind of discovery."""


@contextmanager
def discovery(monitors: tuple[Manifest, ...], *, kubeconfig: str) -> Iterator[str]:
    """Serve ``/<index>`` for each monitor, and yield the address."""
    api = config.new_client_from_config(kubeconfig)  # type: ignore[no-untyped-call]  # of the client

    class Handler(BaseHTTPRequestHandler):
        """Asks the API server at every request: what Prometheus sees is never old."""

        def do_GET(self) -> None:
            content = json.dumps(targets(monitors[int(self.path.strip("/"))], api)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing: there is a request every second."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def targets(monitor: Manifest, api: client.ApiClient) -> list[Manifest]:
    """What a PodMonitor or a ServiceMonitor selects now, as Prometheus wants to be told."""
    selector = label_selector(monitor["spec"]["selector"])
    if monitor["kind"] == "PodMonitor":
        pods = client.CoreV1Api(api).list_pod_for_all_namespaces(label_selector=selector)
        found = [target for pod in items(pods, api) for target in of_pod(pod)]
    else:
        # Slices bear the labels of their Service.
        slices = client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces(label_selector=selector)
        found = [target for part in items(slices, api) for target in of_endpoint_slice(part)]
    return [target for target in found if watches(monitor, target["labels"][f"{META}_namespace"])]


def items(answer: object, api: client.ApiClient) -> list[Manifest]:
    """The objects of a list as the API has them; the client makes classes of them."""
    written: list[Manifest] = api.sanitize_for_serialization(answer)["items"]  # type: ignore[no-untyped-call]  # of the client
    return written


def of_pod(pod: Manifest) -> Iterator[Manifest]:
    """One target for each port of a pod that has an address."""
    metadata = pod["metadata"]
    labels = {f"{META}_pod_label_{re.sub('[^A-Za-z0-9_]', '_', key)}": text for key, text in metadata["labels"].items()}
    labels |= {f"{META}_namespace": metadata["namespace"], f"{META}_pod_name": metadata["name"]}
    address = pod["status"].get("podIP")
    for port in (port for container in pod["spec"]["containers"] for port in container.get("ports", []) if address):
        yield {"targets": [f"{address}:{port['containerPort']}"], "labels": {**labels, PORT_NAME: port["name"]}}


def of_endpoint_slice(part: Manifest) -> Iterator[Manifest]:
    """One target for each port of each address behind a Service."""
    for endpoint in part.get("endpoints") or ():
        labels = {
            f"{META}_namespace": part["metadata"]["namespace"],
            f"{META}_pod_name": endpoint.get("targetRef", {}).get("name", ""),
        }
        for address in endpoint["addresses"]:
            for port in part["ports"]:
                yield {"targets": [f"{address}:{port['port']}"], "labels": {**labels, PORT_NAME: port["name"]}}


def watches(monitor: Manifest, namespace: str) -> bool:
    """Tell whether a monitor looks at a namespace; without a selector it looks at its own."""
    chosen = monitor["spec"].get("namespaceSelector", {})
    return bool(chosen.get("any")) or namespace in chosen.get("matchNames", [monitor["metadata"]["namespace"]])


def label_selector(selector: Manifest) -> str:
    """Write a LabelSelector as text."""
    equal = [f"{key}={value}" for key, value in selector.get("matchLabels", {}).items()]
    return ",".join(equal + [_requirement(each) for each in selector.get("matchExpressions", [])])


def _requirement(expression: Manifest) -> str:
    key, values = expression["key"], ",".join(expression.get("values", []))
    texts: dict[str, str] = {"Exists": key, "In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})"}
    return texts[expression["operator"]]
