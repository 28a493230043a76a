"""One JSON object per log line, with the rank and the stage that wrote it."""

import json
import logging
import sys
from datetime import UTC, datetime

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What every log record has; other attributes came through ``extra``."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line: time, level, logger, message, who wrote it, then the record's own fields."""

    def __init__(self, origin: dict[str, int]) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; its message is a constant phrase, its values are fields."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._origin,
            **{name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(*, level: int = logging.INFO, **origin: int) -> None:
    """Send the log to stderr.

    Args:
        level: below it nothing is written.
        origin: fields of every line, for instance ``rank=3, stage=1``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(origin))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def configure_rank_logging(*, rank: int, stage: int) -> None:
    """Configure the log of one rank: rank 0 tells the story, the others what needs attention."""
    configure_logging(level=logging.INFO if rank == 0 else logging.WARNING, rank=rank, stage=stage)
