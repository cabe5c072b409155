"""The process's environment as settings read it, and what in it is no setting after all.

Secrets may come from files: `TANDEM_KEYS_FILE=/run/secrets/keys` sets TANDEM_KEYS to the text of
that file. Kubernetes sets variables for each service that a pod can see; of services whose names
begin with `tandem`, these look like settings and are ignored.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tandem_shared.errors import Misconfigured

PREFIX = "TANDEM_"
# Read by the client and the command, by tests, or by compose.
_OTHER_NAMES = frozenset({"TANDEM_URL", "TANDEM_API_KEY"})
_OTHER_PREFIXES = ("TANDEM_TEST_",)
_CONNECTIONS = ("TANDEM_SQL__", "TANDEM_MONGO__")
_SECRETS = frozenset(
    {"TANDEM_REDIS_URL", "TANDEM_DATABASE_URL", "TANDEM_STORE_URL", "TANDEM_SMTP_URL",
     "TANDEM_KEYS"}
)  # fmt: skip
MAX_SECRET_BYTES = 1 << 20

# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")
_SERVICE_NAME = re.compile(
    r"TANDEM_(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)


def read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of settings, with secrets read from their files, by name in lower case.

    Raises Misconfigured for a secret's file that cannot be read, or is given beside its value.
    """
    found = {
        name.upper(): value
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and not _is_of_kubernetes(name.upper(), value)
    }
    for name in [name for name in found if _secret_of(name)]:
        setting = _secret_of(name)
        if setting in found:
            raise Misconfigured(f"{name}: {setting} is set as well; use one of them")
        found[setting] = _read_secret(name, found.pop(name))
    return {name.lower(): value for name, value in found.items()}


def unknown_names(environ: Iterable[tuple[str, str]], fields: Iterable[str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is none.

    `fields` are the settings' names, `redis_url`.
    """
    known = {f"{PREFIX}{field.upper()}" for field in fields}
    suggested = sorted((known - {"TANDEM_SQL", "TANDEM_MONGO"}) | set(_OTHER_NAMES))
    sentences = []
    for given, value in sorted(environ):
        name = given.upper()
        if not name.startswith(PREFIX) or name in known or name in _OTHER_NAMES:
            continue
        if name.startswith((*_CONNECTIONS, *_OTHER_PREFIXES)) or _secret_of(name):
            continue
        if _is_of_kubernetes(name, value):
            continue
        sentences.append(f"{given} is not a setting and is ignored{_hint(name, suggested)}")
    return sentences


def _hint(name: str, suggested: list[str]) -> str:
    for prefix in _CONNECTIONS:
        if name.startswith(prefix[:-1]):
            return f": a connection is {prefix}<NAME>, with two underscores"
    close = difflib.get_close_matches(name, suggested, n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else "; `tandem settings` lists all settings"


def _secret_of(name: str) -> str:
    """The setting that a `_FILE` variable sets; empty for other variables."""
    setting = name.removesuffix("_FILE")
    is_secret = setting in _SECRETS or setting.startswith(_CONNECTIONS)
    return setting if name.endswith("_FILE") and is_secret else ""


def _read_secret(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise Misconfigured(f"{name}: {path}: {reason}") from None
    try:
        if len(data) > MAX_SECRET_BYTES:
            raise Misconfigured(f"{name}: {path}: larger than {MAX_SECRET_BYTES} bytes")
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise Misconfigured(f"{name}: {path}: the file is not UTF-8 text") from None
    if not text:
        raise Misconfigured(f"{name}: {path}: the file is empty")
    # One key a line reads better than one long line.
    return ",".join(text.split()) if name == "TANDEM_KEYS_FILE" else text


def _is_of_kubernetes(name: str, value: str) -> bool:
    is_port = name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None
    return is_port or _SERVICE_NAME.fullmatch(name) is not None
