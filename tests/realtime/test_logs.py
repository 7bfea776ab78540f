from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.logs import LINES_PER_S, Format, JsonFormatter, set_up


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


# What peers can do to a log


def lines_of(kind: Format, *records: logging.LogRecord) -> list[str]:
    """The lines that a handler as ``configure`` sets it up writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    set_up(handler, kind)
    for each in records:
        handler.handle(each)
    return written.getvalue().splitlines()


def record_at(created_s: float, message: str, *arguments: object, name: str = "a") -> logging.LogRecord:
    record = logging.LogRecord(name, logging.WARNING, "file.py", 1, message, arguments, None)
    record.created = created_s
    return record


@pytest.mark.parametrize("kind", ["text", "json"])
def test_one_cause_logs_a_few_lines_a_second_and_says_how_many_are_missing(kind: Format) -> None:
    flood = [record_at(100 + number / 1_000, "refused %d", number) for number in range(900)]
    lines = lines_of(kind, *flood, record_at(100.95, "something else"), record_at(101.5, "refused %d", 1))
    assert len(lines) == LINES_PER_S + 2
    assert "something else" in lines[-2]
    assert f"refused 1 ({900 - LINES_PER_S} more like this were not logged)" in lines[-1]


def test_a_cause_of_another_logger_is_another() -> None:
    flood = [record_at(100, "refused", name=name) for name in ("a", "b") for _ in range(50)]
    assert len(lines_of("text", *flood)) == 2 * LINES_PER_S


def test_lines_of_a_report_are_not_one_cause() -> None:
    assert len(lines_of("text", *(record_at(100, "%s", f"line {number}") for number in range(50)))) == 50


def test_a_clock_that_goes_back_holds_nothing_back_for_long() -> None:
    flood = [record_at(100, "refused") for _ in range(50)]
    assert len(lines_of("text", *flood, record_at(50, "refused"))) == LINES_PER_S + 1


@pytest.mark.parametrize("kind", ["text", "json"])
@given(sent=st.text(max_size=50))
def test_whatever_a_peer_sends_is_one_line_without_control_characters(kind: Format, sent: str) -> None:
    sent = "\x1b[2J\n2026-01-01 all is well\u2028\r\x9b\u202e" + sent
    lines = lines_of(kind, record_at(100, "refused %s", sent))
    assert len(lines) == 1
    assert not any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in lines[0])
    assert "\u202e" not in lines[0]
    if kind == "json":
        assert json.loads(lines[0])["message"] == f"refused {sent}"
    else:
        assert r"\x1b[2J\n2026-01-01 all is well\u2028\r\x9b\u202e" in lines[0]
        assert all(each in lines[0] for each in sent if each.isprintable())


def test_a_traceback_keeps_its_lines_and_loses_escapes() -> None:
    try:
        raise ValueError("\x1b[31mred")
    except ValueError:
        record = record_at(100, "failed")
        record.exc_info = sys.exc_info()
    lines = lines_of("text", record)
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: \x1b[31mred"
