"""Logging of all processes: structlog and the standard library through one pipeline, to stderr.

A line holds no secret and no control character, so a payload can neither forge a line nor move a
terminal's cursor.
"""

import logging
import os
import re
import sys
import textwrap
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

SECRET_NAMES = frozenset({"authorization", "api_key", "cookie", "password", "secret", "set-cookie"})
MAX_VALUE_CHARS = 8192  # longer values are cut, except tracebacks
MAX_DEPTH = 4
# C1, and what a terminal or a log reader takes for a line end or a change of direction.
_CONTROL_ABOVE_ASCII = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
_CONTROL = re.compile("[\x00-\x1f" + _CONTROL_ABOVE_ASCII)
_CONTROL_EXCEPT_TAB_AND_LF = re.compile("[\x00-\x08\x0b-\x1f" + _CONTROL_ABOVE_ASCII)
_SECRETS = (
    (re.compile(r"(://[^\s/:@?#]*):[^\s/@]+@"), r"\1:***@"),
    (re.compile(r"\b(tk_[A-Za-z0-9]{4,32})_[A-Za-z0-9]{16,128}"), r"\1_***"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
)


def configure_logging(format: LogFormat, process: str, *processors: Processor) -> None:
    """Set up the logging of this process: `console` for people, `json` for machines.

    Every line passes through `processors` first.
    """
    shared: list[Processor] = [
        *processors,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    if format == "json":
        shared += [structlog.stdlib.add_logger_name, _add_process(process)]
        last: list[Processor] = [structlog.processors.JSONRenderer()]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            pad_event_to=0,
            pad_level=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
        last = [_indent_traceback, renderer]
    handler = logging.StreamHandler(sys.stderr)  # flushes after each line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # Lines of the standard library: with their `extra` and the name of their logger.
            foreign_pre_chain=[
                structlog.stdlib.ExtraAdder(),
                structlog.stdlib.add_logger_name,
                *shared,
            ],
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
    # arq logs two lines per job, and uvicorn.access one per request.
    quiet = ("arq", "uvicorn.access")
    for name in ("uvicorn", "uvicorn.error", *quiet):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        if name in quiet:
            logger.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    sys.excepthook = _log_uncaught


def print_fatal(message: str, process: str) -> None:
    """Print why the process ends before, or without, its settings: JSON lines if those are set."""
    if os.environ.get("TANDEM_LOG") != "json":
        sys.stderr.write(f"{message}\n")
        return
    configure_logging("json", process)
    for line in message.splitlines():
        structlog.get_logger().critical(line)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    message = "the process ends because of an error that it does not expect"
    structlog.get_logger().critical(message, exc_info=(kind, error, trace))


def clean_event(_logger: WrappedLogger, _method: str, event: EventDict) -> MutableMapping[str, Any]:
    """A structlog processor: plain data only, without secrets and control characters."""
    for name, value in event.items():
        if name in ("exception", "stack") and isinstance(value, str):
            event[name] = mask_secrets(_CONTROL_EXCEPT_TAB_AND_LF.sub(_escape, value))
        else:
            event[name] = _clean_value(name, value, MAX_DEPTH)
    return event


def _indent_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # A multi-line message inside a traceback must not look like log lines.
    for name in ("exception", "stack"):
        if isinstance(event.get(name), str):
            event[name] = textwrap.indent(event[name], "    ", lambda _line: True)
    return event


def _add_process(process: str) -> Processor:
    pid = os.getpid()

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"], event["pid"] = process, pid
        return event

    return add


def _clean_value(name: str, value: object, depth: int) -> object:
    if name.lower() in SECRET_NAMES:
        return "***"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, Mapping):
        return {
            _clean_text(str(key)): _clean_value(str(key), item, depth - 1)
            for key, item in value.items()
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_clean_value("", item, depth - 1) for item in value]
    return _clean_text(value if isinstance(value, str) else repr(value))


def _clean_text(text: str) -> str:
    text = mask_secrets(_CONTROL.sub(_escape, text[: MAX_VALUE_CHARS * 2]))
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… ({len(text)} characters)"


def mask_secrets(text: str) -> str:
    """The text with passwords in URLs, API keys and authorization headers masked."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
