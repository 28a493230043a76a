"""Asks the supervisors in pods how far they are, over HTTP; pods push nothing and hold no credentials.

A pod that does not answer is no error here: what its silence means is decided from the pod object.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from galvatron_operator import names
from galvatron_planner.errors import InvalidDocument
from galvatron_planner.worker import WorkerStatus

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TIMEOUT_SECONDS = 5.0
"""For a whole answer; a supervisor answers from memory, but ranks on CPUs leave it little time."""
CONNECT_SECONDS = 2.0
"""For the connection, which the kernel of the pod's node makes; every round of a job waits so long for a lost node."""
LARGEST_ANSWER = 4 * 1024**2
"""Bytes; more than any document, so that a foreign server on the port cannot fill the operator's memory."""


class HttpWorkers:
    """The port ``Workers`` for real; any number of pods is asked at the same time without threads."""

    async def status(self, address: str, port: int) -> WorkerStatus | None:
        """Ask how a supervised command is doing; None when nobody answers."""
        return await _ask(address, port, names.STATUS_PATH, WorkerStatus.from_json)

    async def result(self, address: str, port: int) -> str | None:
        """Ask for the document that a command has made; None when there is none yet."""
        return await _ask(address, port, names.RESULT_PATH, bytes.decode)


async def _ask(address: str, port: int, path: str, decode: Callable[[bytes], Answer]) -> Answer | None:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = await _fetch(address, port, path)
        return None if body is None else decode(body)
    except (OSError, TimeoutError) as error:
        log.debug("a pod does not answer", extra={"address": address, "path": path, "error": str(error)})
    except (InvalidDocument, ValueError) as error:
        log.warning("a pod's answer cannot be read", extra={"address": address, "path": path, "error": str(error)})
    return None


async def _fetch(address: str, port: int, path: str) -> bytes | None:
    """Get ``path``; None for any answer but 200.

    HTTP/1.0, so that the body is what comes until the server closes: neither chunks nor kept connections.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(address, port)
    try:
        host = f"[{address}]" if ":" in address else address
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        await writer.drain()
        status_line = await reader.readline()
        while (await reader.readline()).strip():
            """Headers say nothing that matters here."""
        body = await _read_all(reader)
    finally:
        writer.close()
    return body if status_line.split(b" ")[1:2] == [b"200"] else None


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while part := await reader.read(65536):
        body += part
        if len(body) > LARGEST_ANSWER:
            raise OSError(f"an answer of more than {LARGEST_ANSWER} bytes")
    return bytes(body)
