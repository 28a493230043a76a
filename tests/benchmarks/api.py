"""A small client of the test cluster's API server for benchmarks that play parts of a cluster: asynchronous and raw.

kubectl takes 0.2 s of a core for each call, and the Python client a thread; a thousand pods need neither.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import yaml

Manifest = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class Refusal(Exception):
    """An answer of the API server that is no success; ``status`` is its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Api:
    """Requests to one API server; make it with :func:`api_of`."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def request(
        self, method: str, path: str, body: Manifest | None = None, content_type: str = "application/json"
    ) -> Manifest:
        """Send one request.

        Raises:
            Refusal: when it is not fulfilled.
        """
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(method, self._server + path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise Refusal(answer.status, text)
            content: Manifest = json.loads(text)
            return content

    async def watch(self, path: str, selector: str = "") -> AsyncIterator[tuple[str, Manifest]]:
        """Yield everything that exists as ``ADDED``, then every event, without end."""
        query = f"?{selector}" if selector else "?"
        while True:
            found = await self.request("GET", path + query)
            for item in found["items"]:
                yield "ADDED", item
            version = found["metadata"]["resourceVersion"]
            async for kind, item in self._events(f"{path}{query}&watch=1&resourceVersion={version}"):
                yield kind, item

    async def _events(self, path: str) -> AsyncIterator[tuple[str, Manifest]]:
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(self._server + path, timeout=timeout) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]


@asynccontextmanager
async def api_of(kubeconfig: Path) -> AsyncIterator[Api]:
    """Connect as the administrator of the test cluster, whose kubeconfig holds its certificates."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    with TemporaryDirectory(prefix="galvatron-benchmark-") as name:
        certificate, key = Path(name, "certificate"), Path(name, "key")
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(certificate, key)
    connector = aiohttp.TCPConnector(ssl=context, limit=32)
    # Whole lists and events come as one line.
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**24) as session:
        yield Api(session, cluster["server"])


async def existing(api: Api, path: str) -> Manifest | None:
    """Read one object, or None when there is none."""
    try:
        return await api.request("GET", path)
    except Refusal as refusal:
        if refusal.status == 404:
            return None
        raise


async def every(seconds: float) -> AsyncIterator[None]:
    """Yield at once and then every so many seconds."""
    while True:
        yield
        await asyncio.sleep(seconds)
