"""The one HTTP port of a pod: probes, status, result and metrics.

Read-only and without secrets: whoever reaches the pod's port may read it. Answers are made when they are asked for.
"""

import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

from prometheus_client import CONTENT_TYPE_LATEST

from galvatron_planner.errors import GalvatronError
from galvatron_planner.worker import WorkerState, WorkerStatus
from galvatron_runtime.metrics import scrape
from galvatron_runtime.recorder import NoTrace, TraceRecorder
from galvatron_runtime.reports import read_reports

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
"""In the run directory: what a measuring command hands out."""
MAX_TRACED_STEPS = 20
"""Traces of more steps are too large to look at."""
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"


class PortUnusable(GalvatronError):
    """The supervisor cannot listen where it was told to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response."""

    status: HTTPStatus
    content_type: str
    body: bytes


def serve(*, address: str, port: int, run_directory: Path, status: Callable[[], WorkerStatus]) -> None:
    """Answer on ``port`` from a background thread until the process ends.

    Raises:
        PortUnusable: when the port is taken or the address is not of this machine.
    """
    recorder = TraceRecorder(run_directory, status)
    answers: dict[str, Callable[[str], Answer]] = {
        "/livez": lambda _: Answer(HTTPStatus.OK, _TEXT, b"ok\n"),
        "/readyz": lambda _: _readiness(status()),
        "/v1/status": lambda _: Answer(HTTPStatus.OK, _JSON, status().to_json().encode()),
        "/v1/result": lambda _: _result(run_directory / RESULT_FILE),
        "/v1/trace": lambda query: _trace(recorder, query),
        "/metrics": lambda _: Answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, scrape(read_reports(run_directory))),
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that sends nothing must not keep a thread

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            answer = answers.get(path, _unknown)(query)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            log.debug("request answered", extra={"request": format % args})

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's
            # Clients that hang up early are no concern of the log; anything else is a defect of ours.
            problem = sys.exception()
            if not isinstance(problem, ConnectionError):
                log.error("request failed", exc_info=problem, extra={"client": str(client_address)})

    try:
        server = Server((address, port), Handler)
    except OSError as error:
        raise PortUnusable(
            f"cannot listen on port {port} of {address}: {error.strerror}",
            remedy="end the process that uses the port, or choose another with --port",
        ) from error
    Thread(target=server.serve_forever, name="endpoints", daemon=True).start()


def is_ready(status: WorkerStatus) -> bool:
    """Whether steps (or measurements) advance in this attempt."""
    return status.state is WorkerState.RUNNING and status.progress is not None


def _readiness(status: WorkerStatus) -> Answer:
    if is_ready(status):
        return Answer(HTTPStatus.OK, _TEXT, b"ok\n")
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{status.state}, no step yet\n".encode())


def _result(path: Path) -> Answer:
    if path.exists():
        return Answer(HTTPStatus.OK, _JSON, path.read_bytes())
    return Answer(HTTPStatus.NOT_FOUND, _TEXT, b"no result yet\n")


def _trace(recorder: TraceRecorder, query: str) -> Answer:
    """Answer ``steps=3`` with a trace of the next three steps, and no query with the last trace."""
    match parse_qs(query):
        case {"steps": [text]} if text.isdecimal() and 1 <= int(text) <= MAX_TRACED_STEPS:
            traced = recorder.record(int(text))
        case asked if not asked and not query:
            traced = recorder.last()
        case _:
            text = f"write /v1/trace?steps=N with N from 1 to {MAX_TRACED_STEPS}, or /v1/trace for the last one\n"
            return Answer(HTTPStatus.BAD_REQUEST, _TEXT, text.encode())
    if isinstance(traced, NoTrace):
        return Answer(HTTPStatus.CONFLICT, _TEXT, f"{traced.reason}\n".encode())
    return Answer(HTTPStatus.OK, _JSON, traced)


def _unknown(_query: str) -> Answer:
    return Answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are /livez /readyz /v1/status /v1/result /v1/trace /metrics\n")
