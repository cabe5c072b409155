"""The settings of both processes, from `TANDEM_*` variables: frozen, checked whole, built once in `__main__`.

A list is comma-separated; an empty value is an empty list and counts as set. Durations are seconds
or `250ms|30s|5m`.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tandem_shared.errors import Misconfigured
from tandem_shared.redis_url import watched
from tandem_shared.times import Seconds

LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1")
QUEUE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
API_KEY = re.compile(r"tk_([A-Za-z0-9]{4,32})_([A-Za-z0-9]{16,128})")


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _queues(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(QUEUE_NAME_PATTERN, name):
            raise ValueError(
                f"{name!r} is no queue name: letters, digits, '.', '_' and '-', at most 64"
            )
    if not value:
        raise ValueError("a worker needs at least one queue")
    return value


def _keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for number, key in enumerate(value, 1):
        if not API_KEY.fullmatch(key):
            raise ValueError(
                f"key number {number} is none: tk_<id>_<secret>, 4 to 32 and 16 to 128 letters and digits"
            )
    return value


def _redis_url(value: str) -> str:
    if watched(value) is None and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
        raise ValueError(
            "give redis://host:port/db, rediss://…, unix:///path or redis+sentinel://…"
        )
    return value


def _database_url(value: str) -> str:
    if (
        value.partition("://")[0] not in ("sqlite", "postgres", "postgresql", "asyncpg")
        or "://" not in value
    ):
        raise ValueError(
            "give sqlite://path, postgres://user:password@host/name, postgresql://… or asyncpg://…"
        )
    return value


def _mongo_url(value: str) -> str:
    if value.partition("://")[0] not in ("mongodb", "mongodb+srv") or "://" not in value:
        raise ValueError("give mongodb://host:port/database or mongodb+srv://…")
    return value


def _store_url(value: str) -> str:
    if urlsplit(value).scheme not in ("file", "s3", "gs", "az", "memory"):
        raise ValueError("give file:///path, s3://bucket/prefix, gs://… or az://…")
    return value


def _smtp_url(value: str) -> str:
    if value and urlsplit(value).scheme not in ("smtp", "smtps"):
        raise ValueError("give smtp://user:password@host:587 or smtps://…")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
            raise ValueError(
                f"{origin!r} is no origin: https://app.example, with a port where it has one, and no path"
            )
    return tuple(origin.lower() for origin in value)


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        if re.fullmatch(r"[0-9a-fA-F:.]+(/[0-9]+)?", entry) and (
            ":" in entry or entry[0].isdigit()
        ):
            ipaddress.ip_network(entry, strict=False)
        elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", entry):
            raise ValueError(f"{entry!r} is neither a network (10.0.0.0/8, ::1) nor a host name")
    return value


def _number(value: Any) -> Any:
    # Everything in the environment is text, a number of seconds too.
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value.strip()):
        return float(value)
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Duration = Annotated[Seconds, BeforeValidator(_number)]


class Settings(BaseSettings):
    """Everything that can be set; `tandem settings` prints it with secrets masked."""

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_",
        env_nested_delimiter="__",
        env_nested_max_split=1,
        frozen=True,
        extra="ignore",
    )

    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey, 6.2 or newer: redis://, rediss://, unix:// or redis+sentinel://",
    )
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "sqlite://.tandem/tandem.db",
        description="SQL database of the service itself, a Tortoise URL",
    )
    store_url: Annotated[str, AfterValidator(_store_url)] = Field(
        "file:///tmp/tandem-files",
        description="file store: file:///path, s3://bucket/prefix, gs://…, az://…",
    )
    store_presign: Duration = Field(
        0.0,
        le=7 * 86400,
        description="downloads become redirects to the remote store, signed for so long; 0: they do not",
    )
    tasks: Names = Field(
        (), description="task modules besides the built-in ones, importable by the worker"
    )
    sql: dict[str, Annotated[str, AfterValidator(_database_url)]] = Field(
        {}, description="SQL connections that tasks may name: TANDEM_SQL__<NAME>=<URL>"
    )
    queries: str = Field(
        "", description="TOML file of the SQL queries that jobs may name, see docs/deploying.md"
    )
    mongo: dict[str, Annotated[str, AfterValidator(_mongo_url)]] = Field(
        {}, description="MongoDB connections likewise: TANDEM_MONGO__<NAME>=<URL>"
    )
    smtp_url: Annotated[str, AfterValidator(_smtp_url)] = Field(
        "",
        description="mail server: smtp://user:password@host:587 (STARTTLS) or smtps://…; ?tls=none&from=a@b.org",
    )
    http_allow: Annotated[Names, AfterValidator(_networks)] = Field(
        (), description="networks and hosts that tasks may reach besides the public internet"
    )
    queues: Annotated[Names, AfterValidator(_queues)] = Field(
        ("default",), description="queues this worker serves"
    )
    concurrency: int = Field(100, ge=1, le=10_000, description="jobs a worker runs at once")
    lease: Duration = Field(
        10.0, ge=1, le=600, description="how long a silent worker keeps its jobs"
    )
    drain: Duration = Field(
        30.0, le=3600, description="how long a worker finishes its jobs after SIGTERM"
    )
    linger: Duration = Field(
        2.0, le=60, description="how long an API still serves after SIGTERM, unready meanwhile"
    )
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the API listens on, 0 for a free one")
    metrics_host: str = Field("127.0.0.1", description="address on which a worker serves /metrics")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="its port, 0 for none; the API serves its own"
    )
    keys: Annotated[Names, AfterValidator(_keys)] = Field(
        (), description="API keys tk_<id>_<secret>; needed on any address but loopback"
    )
    origins: Annotated[Names, AfterValidator(_origins)] = Field(
        (),
        description="origins (https://app.example) whose pages may open a WebSocket, besides the API's own",
    )
    log: Literal["console", "json"] = Field("console", description="form of the log lines")
    job_log: Literal["debug", "info", "warning", "error", "off"] = Field(
        "info", description="from which level on what a job's code logs goes to its stream too"
    )
    keep: Duration = Field(
        7 * 86400.0, ge=1, description="how long final jobs, their files and uploads are known"
    )
    ledger_keep: Duration = Field(
        30 * 86400.0, ge=1, description="how long the ledger keeps jobs that have ended"
    )
    ledger_keep_failed: Duration = Field(
        90 * 86400.0, ge=1, description="how long it keeps those that failed"
    )
    ledger_backlog: int = Field(
        1_000_000,
        ge=1,
        description="entries that may wait for the ledger; above, no job is accepted (503)",
    )
    max_backlog: int = Field(
        1_000_000,
        ge=0,
        description="unfinished jobs of one queue; above, no more are accepted there (503); 0: any number",
    )
    max_body: int = Field(1 << 20, ge=1024, description="bytes of a job's body, and of a bulk item")
    max_upload: int = Field(10 << 30, ge=1024, description="bytes of an uploaded file")
    max_output: int = Field(
        10 << 30, ge=1024, description="bytes that a job may stream, all attempts together"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings' own
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no .env file is looked for
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - nor a folder of secrets
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Arguments and the environment: two sources, the first wins.
        return init_settings, env_settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(settings: Settings) -> None:
    """Raises Misconfigured for an API that would be open to others than this machine."""
    if not settings.keys and not is_loopback(settings.host):
        raise Misconfigured(
            f"TANDEM_KEYS: the API would be open to everybody on {settings.host}; set it, or listen on 127.0.0.1"
        )


def load_settings(**given: Any) -> Settings:
    """The settings from the environment, `given` ones before it. Raises Misconfigured, which names every wrong one."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise Misconfigured("\n".join(_explain(one) for one in error.errors())) from None


def _explain(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    # ("sql", "analytics") is TANDEM_SQL__ANALYTICS; a number is the place in a list, and says no
    # more.
    name = "__".join(part for part in error["loc"] if isinstance(part, str))
    # The value of a setting may be a secret: only what the type says of it is shown.
    return f"TANDEM_{name.upper()}: {message}"


def mask_url(url: str) -> str:
    """A URL without its password and without the query's values."""
    # By pattern, up to the last "@": a password that should have been quoted must not show either.
    url = re.sub(r"://([^:/?#@]*):.*@", r"://\1:***@", url)
    address, question, query = url.partition("?")
    return (
        address
        + question
        + "&".join(f"{pair.partition('=')[0]}=***" for pair in query.split("&") if pair)
    )


def masked_settings(settings: Settings) -> dict[str, str]:
    """Every setting as `TANDEM_NAME` → its value as text, secrets masked."""
    lines: dict[str, str] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        key = f"TANDEM_{name.upper()}"
        if name == "keys":
            lines[key] = ",".join(f"{one.rpartition('_')[0]}_***" for one in value)
        elif isinstance(value, dict):
            lines.update(
                {f"{key}__{connection.upper()}": mask_url(url) for connection, url in value.items()}
            )
        elif isinstance(value, tuple):
            lines[key] = ",".join(value)
        elif name.endswith("_url"):
            lines[key] = mask_url(value)
        else:
            lines[key] = str(value)
    return lines
