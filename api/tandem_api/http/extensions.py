"""ASGI extensions that our server and our endpoints agree on."""

from typing import Any

ANSWER = (
    "tandem.answer"  # {"type": ANSWER, "status", "headers" (with the length of the body), "body"}
)


WHOLE = "tandem.whole"


# Of a scope: shared, since nobody changes them.
COMING: dict[str, Any] = {ANSWER: {}}


CAME: dict[str, Any] = {ANSWER: {}, WHOLE: {}}
