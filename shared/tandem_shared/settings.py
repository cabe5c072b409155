"""The settings of all processes, from `TANDEM_*` variables: frozen, and validated as a whole.

`__main__` builds them once and passes them on. A list is comma-separated; an empty value is an
empty list and counts as set. A duration is a number of seconds, or `250ms|30s|5m|2h|7d`.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from tandem_shared.environment import read_environment, unknown_names
from tandem_shared.errors import Misconfigured
from tandem_shared.postgres import check_postgres_url
from tandem_shared.redis_url import check_redis_url
from tandem_shared.times import Seconds

LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1")
QUEUE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
API_KEY = re.compile(r"tk_([A-Za-z0-9]{4,32})_([A-Za-z0-9]{16,128})")


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _number(value: Any) -> Any:
    # The environment holds only text, so a number of seconds comes as text too.
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value.strip()):
        return float(value)
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Duration = Annotated[Seconds, BeforeValidator(_number)]


def _each_matches(pattern: str | re.Pattern[str], problem: str) -> AfterValidator:
    """Check every item of a list; `problem` is a format of the item and its number (1, 2, …)."""

    def check(items: tuple[str, ...]) -> tuple[str, ...]:
        for number, item in enumerate(items, 1):
            if not re.fullmatch(pattern, item):
                raise ValueError(problem.format(item=item, number=number))
        return items

    return AfterValidator(check)


def _url(schemes: str, usage: str, *, optional: bool = False) -> AfterValidator:
    """Check the scheme of a URL; errors never repeat the URL, which may hold a password."""

    def check(url: str) -> str:
        scheme, separator, _ = url.partition("://")
        known = separator and scheme in schemes.split()
        if not known and (url or not optional):
            raise ValueError(f"not a supported URL; use {usage}")
        try:
            urlsplit(url)
        except ValueError as error:  # brackets that hold no IPv6 address
            raise ValueError(f"not a valid URL: {error}") from None
        return url

    return AfterValidator(check)


def _root_path(path: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path) or "/../" in f"{path}/":
        raise ValueError(f"{path!r} is not a path; use /tandem, or leave it empty")
    return path


def _networks(items: tuple[str, ...]) -> tuple[str, ...]:
    for item in items:
        if re.fullmatch(r"[0-9a-fA-F:.]+(/[0-9]+)?", item) and (":" in item or item[0].isdigit()):
            ipaddress.ip_network(item, strict=False)
        elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", item):
            raise ValueError(f"{item!r} is neither a network (10.0.0.0/8, ::1) nor a host name")
    return items


RedisUrl = Annotated[
    str,
    _url(
        "redis rediss unix redis+sentinel redis+cluster",
        "redis://host:port/db, rediss://…, unix:///path, redis+sentinel://… or redis+cluster://…",
    ),
    AfterValidator(check_redis_url),
]
DatabaseUrl = Annotated[
    str,
    _url(
        "sqlite postgres postgresql asyncpg",
        "sqlite://path, postgres://user:password@host/name, postgresql://… or asyncpg://…",
    ),
    AfterValidator(lambda url: url if url.startswith("sqlite") else check_postgres_url(url)),
]
MongoUrl = Annotated[
    str, _url("mongodb mongodb+srv", "mongodb://host:port/database or mongodb+srv://…")
]
StoreUrl = Annotated[
    str, _url("file s3 gs az memory", "file:///path, s3://bucket/prefix, gs://… or az://…")
]
MailUrl = Annotated[
    str, _url("smtp smtps", "smtp://user:password@host:587 or smtps://…", optional=True)
]
QueueNames = Annotated[
    Names,
    _each_matches(
        QUEUE_NAME_PATTERN,
        "{item!r} is not a queue name; use up to 64 letters, digits, '.', '_' and '-'",
    ),
]
QueuePatterns = Annotated[
    Names,
    _each_matches(
        r"[A-Za-z0-9._*-]{1,64}",
        "{item!r} is not a pattern for queue names; use their characters, and * for any of them",
    ),
]
ApiKeys = Annotated[
    Names,
    _each_matches(
        API_KEY,
        "key {number} is not valid; use tk_<id>_<secret>, with 4 to 32 letters and digits in <id>"
        " and 16 to 128 in <secret>",
    ),
]
Origins = Annotated[
    Names,
    _each_matches(
        r"https?://[A-Za-z0-9.:\[\]-]+",
        "{item!r} is not an origin; use https://app.example, with a port if needed, without a path",
    ),
    AfterValidator(lambda items: tuple(map(str.lower, items))),
]


RootPath = Annotated[
    str,
    AfterValidator(lambda path: path.rstrip("/")),
    AfterValidator(_root_path),
]


class _Environment(EnvSettingsSource):
    def _load_env_vars(self) -> Mapping[str, str | None]:
        return read_environment(os.environ)


class Settings(BaseSettings):
    """Everything that can be set; `tandem settings` prints it with secrets masked."""

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_",
        env_nested_delimiter="__",
        env_nested_max_split=1,
        frozen=True,
        extra="ignore",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values that were given, then the environment."""
        return init_settings, _Environment(settings_cls)

    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        description=(
            "Redis or Valkey, 6.2 or newer: redis://, rediss://, unix://, redis+sentinel:// or"
            " redis+cluster://"
        ),
    )
    database_url: DatabaseUrl = Field(
        "sqlite://.tandem/tandem.db",
        description="SQL database of the service itself: sqlite://path or postgres://…",
    )
    store_url: StoreUrl = Field(
        "file:///tmp/tandem-files",
        description="file store: file:///path, s3://bucket/prefix, gs://… or az://…",
    )
    store_presign: Duration = Field(
        0.0,
        le=7 * 86400,
        description="how long downloads may use signed URLs of the remote store; 0: not at all",
    )
    tasks: Names = Field(
        (), description="modules of your own tasks, which the worker must be able to import"
    )
    sql: dict[str, DatabaseUrl] = Field(
        {}, description="SQL connections that tasks may use: TANDEM_SQL__<NAME>=<URL>"
    )
    queries: str = Field(
        "",
        description="TOML file of the SQL queries that jobs may run by name, see docs/deploying.md",
    )
    mongo: dict[str, MongoUrl] = Field(
        {}, description="MongoDB connections that tasks may use: TANDEM_MONGO__<NAME>=<URL>"
    )
    smtp_url: MailUrl = Field(
        "",
        description="mail server: smtp://user:password@host:587 (STARTTLS) or smtps://…,"
        " with ?tls=none&from=a@b.org",
    )
    http_allow: Annotated[Names, AfterValidator(_networks)] = Field(
        (), description="networks and hosts that tasks may call besides the public internet"
    )
    queues: QueueNames = Field(
        ("default",), min_length=1, description="queues that the worker serves"
    )
    queues_allowed: QueuePatterns = Field(
        ("*",), description="queues that clients may name: patterns with * for any characters"
    )
    concurrency: int = Field(100, ge=1, le=10_000, description="jobs that a worker runs at once")
    max_zombies: int = Field(
        100,
        ge=1,
        le=10_000,
        description="code that outlived its job at which a worker drains and ends",
    )
    lease: Duration = Field(
        10.0, ge=1, le=600, description="how long a worker that stays silent keeps its jobs"
    )
    drain: Duration = Field(
        30.0, le=3600, description="how long a worker may finish its jobs after SIGTERM"
    )
    linger: Duration = Field(
        2.0, le=60, description="how long the API keeps serving after SIGTERM, while /readyz fails"
    )
    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(
        8000, ge=0, le=65535, description="port that the API listens on; 0 for a free one"
    )
    root_path: RootPath = Field(
        "",
        description="path under which a proxy publishes the API, such as /tandem: links and"
        " redirects begin with it",
    )
    metrics_host: str = Field("127.0.0.1", description="address on which a worker serves /metrics")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port on which a worker serves /metrics; 0 to serve none",
    )
    keys: ApiKeys = Field(
        (),
        description="API keys, tk_<id>_<secret>; required unless the API listens on loopback",
    )
    origins: Origins = Field(
        (),
        description="origins, besides the API's own, whose pages may open a WebSocket, or use"
        " an API without keys: https://app.example",
    )
    log: Literal["console", "json"] = Field("console", description="log format: console or json")
    job_log: Literal["debug", "info", "warning", "error", "off"] = Field(
        "info",
        description="lowest level of a job's log lines that also go to its stream, or off",
    )
    keep: Duration = Field(
        7 * 86400.0, ge=1, description="how long final jobs, their files and uploads are kept"
    )
    ledger_keep: Duration = Field(
        30 * 86400.0,
        ge=1,
        description="how long the ledger keeps jobs that succeeded or were cancelled",
    )
    ledger_keep_failed: Duration = Field(
        90 * 86400.0, ge=1, description="how long the ledger keeps jobs that failed"
    )
    ledger_backlog: int = Field(
        1 << 30,
        ge=1 << 20,
        description="bytes of events and jobs that Redis may keep for a ledger that is behind;"
        " beyond that, new jobs are rejected (503)",
    )
    max_backlog: int = Field(
        1_000_000,
        ge=0,
        description="unfinished jobs per queue before new ones are rejected (503); 0 for no limit",
    )
    max_body: int = Field(
        1 << 20, ge=1024, description="bytes of a job's body, and of each item of a bulk request"
    )
    bulk_spool: int = Field(
        64 << 20,
        ge=64 << 10,
        description="bytes of answers to a bulk of lines that wait on disk (TMPDIR) until it has"
        " come whole; beyond them it is read only as fast as the client reads answers",
    )
    max_upload: int = Field(10 << 30, ge=1024, description="bytes of an uploaded file")
    max_output: int = Field(
        10 << 30, ge=1024, description="bytes that a job may stream, over all its attempts"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(settings: Settings) -> None:
    """Raises Misconfigured if other machines could use the API without a key."""
    if not settings.keys and not is_loopback(settings.host):
        raise Misconfigured(
            f"TANDEM_KEYS: the API would be open to everybody on {settings.host};"
            " set at least one key, or listen on 127.0.0.1"
        )


def load_settings(**given: Any) -> Settings:
    """The settings from `given`, except where it is None, then from the environment.

    Raises Misconfigured with a line for each invalid setting.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Misconfigured("\n".join(map(_explain, error.errors()))) from None
    except SettingsError:  # pydantic takes TANDEM_SQL and TANDEM_MONGO for JSON
        raise Misconfigured(
            "TANDEM_SQL or TANDEM_MONGO: a connection is TANDEM_SQL__<NAME>=<URL>, with two"
            " underscores"
        ) from None


def ignored_variables() -> list[str]:
    """A sentence for each TANDEM_* variable of this process that is not a setting."""
    return unknown_names(os.environ.items(), Settings.model_fields)


# pydantic's error types in our words; formats of the error's context.
_PROBLEMS = {
    "greater_than_equal": "must be at least {ge:g}",
    "int_parsing": "must be a whole number",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "too_short": "must name at least {min_length}",
}


def _explain(error: Mapping[str, Any]) -> str:
    # Names only: ("sql", "analytics") is TANDEM_SQL__ANALYTICS, while a number is an index.
    name = "__".join(part for part in error["loc"] if isinstance(part, str))
    if error["type"] in _PROBLEMS:
        problem = _PROBLEMS[error["type"]].format(**error.get("ctx", {}))
        # Durations are floats by now, so 2h is compared with seconds.
        unit = " seconds" if isinstance(error["input"], float) else ""
    else:
        problem, unit = str(error["msg"]).removeprefix("Value error, "), ""
    return f"TANDEM_{name.upper()}: {problem}{unit}"


def mask_url(url: str) -> str:
    """The URL without its password and without the values of its query."""
    # Mask up to the last "@": a password with unescaped characters must not show either.
    url = re.sub(r"://([^:/?#@]*):.*@", r"://\1:***@", url)
    return re.sub(r"(?<=[?&])([^=&]*)[^&]*", r"\1=***", url)


def masked_settings(settings: Settings) -> dict[str, str]:
    """Every setting, `TANDEM_NAME` → its value as text, with secrets masked."""
    lines: dict[str, str] = {}
    for name, value in settings:
        key = f"TANDEM_{name.upper()}"
        if isinstance(value, dict):
            for connection, url in value.items():
                lines[f"{key}__{connection.upper()}"] = mask_url(url)
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        if name == "keys":
            text = API_KEY.sub(r"tk_\1_***", text)
        lines[key] = mask_url(text) if name.endswith("_url") else text
    return lines
