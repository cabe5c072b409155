"""Logs of all processes: structlog's and the standard library's through one pipeline, a line each, on stderr.

No line holds a control character (nobody's payload can forge a line or move a terminal's cursor) or
a secret.
"""

import logging
import os
import re
import sys
import textwrap
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_NAMES = frozenset({"authorization", "api_key", "cookie", "password", "secret", "set-cookie"})
MAX_VALUE_CHARS = 8192  # characters of one value; a traceback may have more
MAX_DEPTH = 4
# C0, C1, and what a terminal or a reader of lines takes for the end of a line or a change of
# direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_BUT_LINES = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_SECRETS = (
    (re.compile(r"(://[^\s/:@?#]*):[^\s/@]+@"), r"\1:***@"),
    (re.compile(r"\b(tk_[A-Za-z0-9]{4,32})_[A-Za-z0-9]{16,128}"), r"\1_***"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
)


def configure_logging(log: Literal["console", "json"], process: str) -> None:
    """Set up the logs of this process, once, before anything is logged: `console` for people, `json` for machines."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    if log == "json":
        shared += [structlog.stdlib.add_logger_name, _named(process)]
        last: list[Processor] = [structlog.processors.JSONRenderer()]
    else:
        colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        last = [
            _indented,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                pad_event_to=0,
                pad_level=False,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    handler = logging.StreamHandler(sys.stderr)  # flushes after each line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                clean_event,
                *last,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "arq"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # arq says two lines for each job, and who polls is no news.
    logging.getLogger("arq").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def clean_event(_logger: WrappedLogger, _method: str, event: EventDict) -> MutableMapping[str, Any]:
    """A processor: every value made of plain data, without secrets and control characters."""
    for name, value in event.items():
        if name in ("exception", "stack") and isinstance(value, str):
            event[name] = mask_secrets(_CONTROL_BUT_LINES.sub(_escape, value))
        else:
            event[name] = _plain(name, value, MAX_DEPTH)
    return event


def _indented(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # A message of several lines inside a traceback must not look like lines of the log.
    for name in ("exception", "stack"):
        if isinstance(event.get(name), str):
            event[name] = textwrap.indent(event[name], "    ", lambda _line: True)
    return event


def _named(process: str) -> Processor:
    pid = os.getpid()

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"], event["pid"] = process, pid
        return event

    return add


def _plain(name: str, value: object, depth: int) -> object:
    if name.lower() in SECRET_NAMES:
        return "***"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, Mapping):
        return {_text(str(key)): _plain(str(key), one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain("", one, depth - 1) for one in value]
    return _text(value if isinstance(value, str) else repr(value))


def _text(text: str) -> str:
    text = mask_secrets(_CONTROL.sub(_escape, text[: MAX_VALUE_CHARS * 2]))
    return (
        text
        if len(text) <= MAX_VALUE_CHARS
        else f"{text[:MAX_VALUE_CHARS]}… ({len(text)} characters)"
    )


def mask_secrets(text: str) -> str:
    """The text with passwords in URLs, API keys and authorization headers masked."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
