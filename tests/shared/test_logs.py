"""Log lines: one pipeline for all loggers, without secrets and control characters."""

import json
import subprocess
import sys

import pytest

PROGRAM = r"""
import logging, structlog, sys, warnings
from tandem_shared.logs import configure_logging
configure_logging(sys.argv[1], "worker")
log = structlog.get_logger("tasks")
structlog.contextvars.bind_contextvars(job_id="j1")
nested = {"password": "SECRET", "list": [1, "redis://u:SECRET@h"]}
log.info("plain", n=3, none=None, flag=True, nested=nested)
log.info(
    "forged\nline \x1b[31m \u202e \x9b",
    url="postgres://u:SECRET@h/d",
    authorization="SECRET",
    object=ValueError("://a:SECRET@"),
)
log.warning("key tk_abcd_0123456789SECRETSECRET and Bearer SECRETSECRETSECRET")
logging.getLogger("uvicorn.error").info("from %s", "uvicorn redis://u:SECRET@h")
logging.getLogger("arq").info("chatter")
logging.getLogger("uvicorn.access").info("chatter")
log.debug("chatter")
warnings.warn("a warning")
log.info("long", text="x" * 100_000)
try:
    raise ValueError("bad ://a:SECRET@h\n2026-01-01T00:00:00Z [info] forged\x1b")
except ValueError:
    log.exception("boom")
"""


@pytest.fixture(params=["console", "json"])
def lines(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM, request.param],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return request.param, done.stderr.splitlines()


def test_lines_hold_no_secret_and_no_control_character(lines: tuple[str, list[str]]) -> None:
    text = "\n".join(lines[1])
    assert "SECRET" not in text
    assert "chatter" not in text
    assert not [
        one
        for one in text
        if one != "\n" and (ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or one == "\u202e")
    ]


def test_every_line_comes_from_the_pipeline(lines: tuple[str, list[str]]) -> None:
    form, written = lines
    if form == "json":
        entries = [json.loads(line) for line in written]
        assert [entry["event"] for entry in entries[:1]] == ["plain"]
        assert entries[0]["n"] == 3
        assert entries[0]["none"] is None
        assert entries[0]["nested"]["list"] == [1, "redis://u:***@h"]
        assert {entry["process"] for entry in entries} == {"worker"}
        assert {entry["job_id"] for entry in entries} == {"j1"}
        assert entries[-1]["exception"].startswith("Traceback")
    else:
        entries = [line for line in written if not line.startswith("    ")]
        assert all("job_id=j1" in line for line in entries)
        assert all(line[:4].isdigit() for line in entries)
    assert len(entries) == 7
