"""Which attempt is on: as the operator wrote it into this pod, and as the first pod of the gang says over HTTP."""

import http.client
from contextlib import suppress
from pathlib import Path

from galvatron_planner.errors import InvalidDocument, InvalidInput
from galvatron_planner.worker import WorkerState, WorkerStatus

ANSWER_SECONDS = 2.0
"""How long the first pod is given to answer before it is asked again."""


def read_attempt(path: Path) -> int:
    """Read the number of the attempt that this pod belongs to.

    Raises:
        InvalidInput: when the file is missing or holds no number.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInput(
            f"cannot read the number of the attempt from {path}: {error.strerror}",
            remedy="mount the pod's annotation galvatron.io/attempt there",
        ) from error
    if not text.strip().isdecimal():
        raise InvalidInput(
            f"{path} holds {text!r} instead of the number of an attempt",
            remedy="leave the pod's annotation galvatron.io/attempt to the operator",
        )
    return int(text)


def newest_attempt(path: Path, *, known: int) -> int:
    """Read whether an attempt newer than ``known`` has begun.

    Numbers only grow: a file that holds less, or has been spoiled, changes nothing for the attempt that runs.
    """
    with suppress(InvalidInput):
        return max(known, read_attempt(path))
    return known


def is_running(host: str, *, port: int, attempt: int) -> bool:
    """Ask another pod's supervisor whether its command runs under ``attempt``."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/v1/status")
        status = WorkerStatus.from_json(connection.getresponse().read())
    except (OSError, http.client.HTTPException, InvalidDocument):
        return False
    finally:
        connection.close()
    return status.attempt == attempt and status.state is WorkerState.RUNNING
