"""Asking supervisors over HTTP: an answer is a document, anything else is silence."""

import asyncio

import pytest

from galvatron_operator.workers import HttpWorkers
from galvatron_planner.worker import WorkerState, WorkerStatus

HOST = "127.0.0.1"
STATUS = WorkerStatus(attempt=3, node_rank=1, state=WorkerState.RUNNING)


async def ask(answer: bytes, *, path: str = "status") -> object:
    """Ask a server that gives ``answer`` to whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        workers = HttpWorkers()
        return await (workers.status(HOST, port) if path == "status" else workers.result(HOST, port))


def http(body: bytes, *, code: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {code}\r\nContent-Type: application/json\r\n\r\n".encode() + body


def test_a_status_is_read() -> None:
    assert asyncio.run(ask(http(STATUS.to_json().encode()))) == STATUS


def test_a_result_is_passed_on_as_it_is() -> None:
    assert asyncio.run(ask(http(b'{"a": 1}'), path="result")) == '{"a": 1}'


@pytest.mark.parametrize(
    "answer",
    [
        http(b"nothing yet", code="404 Not Found"),
        http(b"{}"),
        http(b"\xff\xfe"),
        b"",
        b"not HTTP at all",
    ],
    ids=["absent", "foreign document", "no text", "closed", "no HTTP"],
)
def test_any_other_answer_is_silence(answer: bytes) -> None:
    assert asyncio.run(ask(answer)) is None


def test_a_port_where_nobody_listens_is_silence() -> None:
    async def scenario() -> object:
        async with await asyncio.start_server(lambda *_: None, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
        return await HttpWorkers().status(HOST, port)

    assert asyncio.run(scenario()) is None
