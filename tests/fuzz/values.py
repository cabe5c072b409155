"""Values that programs trip over, and small changes to good ones."""

import json
import string
from random import Random
from typing import Any

NUMBERS: list[Any] = [
    0, 1, -1, 2, 255, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30,
    0.1, -0.0, 19.9, 2.9, 1e-7, 1e300, 5e-324, 100000000000000.01, 1e15, 1e22,
]  # fmt: skip
TEXTS = [
    "", " ", "a", "null", "NULL", "\\N", "true", "NaN", "Infinity", "-0", "007", "1e5", "1E400",
    "2026-01-31", "9999-12-31", "0001-01-01", "0044-03-15 BC", "infinity", "24:00:00",
    "10000-01-01", "2026-02-30", "2026-01-31T12:00:00Z", "12:00", "1 day", "P1Y2M", "{1,2}",
    "[1,5)", "(1,2)", "\\x00ff", "AP8=", "10101", "::1", "08:00:2b:01:02:03",
    "00000000-0000-0000-0000-000000000000", '{"a":1}', "[" * 50, "é", "日本", "\u0000", "\ufeff",
    "\u2028", "\u0085", "\U0001f389", "a\r\nb", 'x"y', "x'y", "a;b", "a\tb", "=?utf-8?q?a?=",
    "../../etc/passwd", "a/b/c", "%00", "${x}", "$where", "$1", "x" * 5000,
]  # fmt: skip
LEAVES: list[Any] = [None, True, False, *NUMBERS, *TEXTS]


def text(random: Random) -> str:
    """A known text, a few printable letters, or any code points but surrogates."""
    match random.randrange(3):
        case 0:
            return random.choice(TEXTS)
        case 1:
            return "".join(random.choices(string.printable, k=random.randrange(12)))
    codes = (random.randrange(random.choice((128, 0x800, 0x110000))) for _ in range(8))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def value(random: Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = random.randrange(6 if depth else 4)
    if kind < 3:
        return random.choice(LEAVES)
    if kind == 3:
        return text(random)
    if kind == 4:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    return {text(random): value(random, depth - 1) for _ in range(random.randrange(4))}


def changed(random: Random, payload: Any) -> Any:
    """The payload with one part replaced, removed or added."""
    if isinstance(payload, dict) and payload and random.random() < 0.8:
        key = random.choice(sorted(payload))
        rest = {name: one for name, one in payload.items() if name != key}
        if random.random() < 0.1:
            return rest
        return {**rest, key: changed(random, payload[key])}
    if isinstance(payload, list) and payload and random.random() < 0.8:
        at = random.randrange(len(payload))
        return [*payload[:at], changed(random, payload[at]), *payload[at + 1 :]]
    if isinstance(payload, str) and payload and random.random() < 0.5:
        at = random.randrange(len(payload))
        return payload[:at] + text(random)[:3] + payload[at + random.randrange(2) :]
    return value(random)


def as_json(payload: Any) -> bytes:
    """The JSON text; lone surrogates and NaN never occur in these values."""
    return json.dumps(payload, ensure_ascii=False).encode()
