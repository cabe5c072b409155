"""What `tandem dev` starts, and with which settings."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem_shared.dev.servers import LocalServer, free_port, mongo_server, redis_server
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import LOOPBACK_NETWORKS, Settings, mask_url

TABLE_FILE = "demo.db"
TUTORIAL = "wordcount"
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"  # of a checkout
MAX_DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The command line, without what is a setting."""

    data_dir: str = ".tandem"
    workers: int = 1
    demo: bool = True
    once: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The servers to start before the API and the workers, and what all processes are given."""

    data: Path
    servers: tuple[LocalServer, ...]
    env: dict[str, str]  # of every child
    host: str
    port: int
    url: str  # of the API, from this machine
    key: str | None
    tutorial: bool  # whether the workers know text.wordcount
    connection: str  # the workers' SQL connection to TABLE_FILE in `data`
    notes: tuple[str, ...]  # for the user


def make_plan(options: DevOptions, settings: Settings, data: Path) -> Plan:
    """Decide what to start; values that the environment sets are kept. Raises Misconfigured."""
    env, notes = dict(os.environ), [f"data in {data}"]
    servers = _servers(settings, data, env, notes)
    if "http_allow" in settings.model_fields_set:
        reachable = _listed(settings.http_allow)
        notes.append(f"TANDEM_HTTP_ALLOW: tasks may reach the public internet and {reachable}")
    else:
        env["TANDEM_HTTP_ALLOW"] = ",".join(LOOPBACK_NETWORKS)
        reachable = _listed(LOOPBACK_NETWORKS)
        notes.append(
            f"TANDEM_HTTP_ALLOW is not set: tasks may also reach this machine ({reachable})"
        )
    env["TANDEM_DRAIN"] = f"{min(settings.drain, MAX_DRAIN_SECONDS):g}"
    if "linger" not in settings.model_fields_set:
        env["TANDEM_LINGER"] = "0"  # no other replica could take over the requests
    env["PYTHONUNBUFFERED"] = "1"
    connection = "tandem_demo" if "demo" in settings.sql else "demo"
    if options.demo:
        env[f"TANDEM_SQL__{connection.upper()}"] = f"sqlite://{data / TABLE_FILE}"
    tutorial = (EXAMPLES / f"{TUTORIAL}.py").exists()
    if tutorial:
        path = (os.environ.get("PYTHONPATH"), str(EXAMPLES))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        env["TANDEM_TASKS"] = ",".join(dict.fromkeys((*settings.tasks, TUTORIAL)))
    port = _checked_port(settings)
    env["TANDEM_PORT"] = str(port)  # a wrong one of the environment would end the workers
    url = f"http://{_reachable(settings.host)}:{port}"
    key = settings.keys[0] if settings.keys else None
    return Plan(
        data, tuple(servers), env, settings.host, port, url, key, tutorial, connection, tuple(notes)
    )


def _servers(
    settings: Settings, data: Path, env: dict[str, str], notes: list[str]
) -> list[LocalServer]:
    """The servers to start; adds all URLs to `env`, or to `notes` if they are given."""

    def is_given(field: str, name: str) -> bool:
        if field not in settings.model_fields_set:
            return False
        notes.append(f"{name}: {mask_url(getattr(settings, field))} (TANDEM_{field.upper()})")
        return True

    servers = []
    if not is_given("redis_url", "redis"):
        servers.append(redis_server(data))
        env["TANDEM_REDIS_URL"] = servers[-1].url
    for name, url in settings.mongo.items():
        notes.append(f"mongo: {mask_url(url)} (TANDEM_MONGO__{name.upper()})")
    if not settings.mongo:
        try:
            servers.append(mongo_server(data))
            env["TANDEM_MONGO__DEMO"] = servers[-1].url
        except Misconfigured as error:  # the demo does without
            notes.append(f"mongo: {error}")
    if not is_given("database_url", "database"):
        env["TANDEM_DATABASE_URL"] = f"sqlite://{data / 'tandem.db'}"
    if not is_given("store_url", "files"):
        env["TANDEM_STORE_URL"] = (data / "files").as_uri()
    return servers


def _reachable(host: str) -> str:
    """The host of a URL for an address to listen on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


def _checked_port(settings: Settings) -> int:
    if not settings.port:
        return free_port()
    # Probe the port: the API would crash five times, and another program there might answer for it.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Misconfigured(
                f"TANDEM_HOST, TANDEM_PORT: cannot listen on {settings.host} port {settings.port}:"
                f" {error.strerror} (--port 0 takes a free one)"
            ) from None
    return settings.port


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing else"
