"""Log lines are JSON that says who wrote them."""

import json
import logging

from galvatron_runtime.logs import JsonFormatter


def test_a_line_is_json_with_its_rank_and_fields() -> None:
    record = logging.makeLogRecord({"name": "train", "levelname": "INFO", "msg": "step finished", "step": 3})
    line = json.loads(JsonFormatter({"rank": 1, "stage": 0}).format(record))
    assert (line["message"], line["rank"], line["stage"], line["step"]) == ("step finished", 1, 0, 3)


def test_a_field_that_json_cannot_write_becomes_text() -> None:
    record = logging.makeLogRecord({"msg": "failed", "error": ValueError("why")})
    assert json.loads(JsonFormatter({}).format(record))["error"] == "why"
