"""A proxy's path prefix (`TANDEM_ROOT_PATH`): removed from paths, added to links."""

from collections.abc import Awaitable

from starlette.types import Message, Scope, Send

from tandem_api.http.problems import ROOT_PATH

STARTS = frozenset({"http.response.start", "websocket.http.response.start"})


def mount(scope: Scope, send: Send, root: str) -> Send:
    """Removes the prefix from the request's path, unless the proxy has done so.

    Returns a `send` that adds it to the paths in the headers Location and Link.
    """
    scope[ROOT_PATH] = root
    prefix = root.encode()
    if scope["path"].startswith(f"{root}/"):
        scope["path"] = scope["path"].removeprefix(root)
        scope["raw_path"] = scope["raw_path"].removeprefix(prefix)

    def add(name: bytes, value: bytes) -> bytes:
        if name == b"location" and value.startswith(b"/"):
            return prefix + value
        if name == b"link" and value.startswith(b"</"):
            return b"<" + prefix + value[1:]
        return value

    def send_mounted(message: Message) -> Awaitable[None]:
        if message["type"] in STARTS:
            headers = [(name, add(name, value)) for name, value in message.get("headers", ())]
            message = {**message, "headers": headers}
        return send(message)

    return send_mounted
