from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.logs import JsonFormatter


def logged(log: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("realtime.test")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    log(logger)
    logger.removeHandler(handler)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@given(text=st.text())
def test_every_message_is_one_line_of_json(text: str) -> None:
    [line] = logged(lambda logger: logger.warning("%s", text))
    assert line["message"] == text
    assert (line["level"], line["logger"]) == ("warning", "realtime.test")
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_extra_arguments_are_fields() -> None:
    [line] = logged(lambda logger: logger.info("begins", extra={"run_id": "run-01", "folder": Path("runs")}))
    assert (line["run_id"], line["folder"]) == ("run-01", "runs")
    assert line.keys() == {"time", "level", "logger", "message", "run_id", "folder"}


def test_an_exception_is_a_field() -> None:
    def fail(logger: logging.Logger) -> None:
        try:
            raise ValueError("no such thing")
        except ValueError:
            logger.exception("failed")

    [line] = logged(fail)
    assert line["message"] == "failed"
    assert "ValueError: no such thing" in line["exception"]


@pytest.mark.parametrize("path", ["undecodable \udcff"])
def test_invalid_unicode_does_not_stop_the_log(path: str) -> None:
    [line] = logged(lambda logger: logger.info("%s", path))
    assert line["message"] == path
