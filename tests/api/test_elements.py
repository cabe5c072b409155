"""An array with elements that no decoder takes is cut as JSON says, in strings and out of them."""

from typing import Any

import httpx2
import msgspec
import pytest

from tandem_api.elements import elements
from tandem_shared.errors import Invalid, Malformed, TooLarge
from tests.api.serving import problem

DEEP = b"[" * 5000 + b"]" * 5000
OTHERS = [
    b'{"a":"]},[{","b":[1,{"c":[]}]}',
    b'"\\\\"',
    b'"\\",["',
    b"[]",
    b"[[],[[]]]",
    b"{}",
    b"-1.5e3",
    b"null",
    b'{"a\\"b":"\xc3\xbc"}',
]


@pytest.mark.parametrize("place", range(len(OTHERS) + 1))
@pytest.mark.parametrize("between", [b",", b" ,\r\n\t"])
async def test_every_element_is_cut_out_as_it_stands(place: int, between: bytes) -> None:
    parts = [*OTHERS[:place], DEEP, *OTHERS[place:]]
    body = b" [ " + between.join(parts) + b" ] "
    assert msgspec.json.decode(body.replace(DEEP, b"0"))  # the others are JSON
    assert await elements(body, len(parts)) == parts
    with pytest.raises(TooLarge):
        await elements(body, len(parts) - 1)


@pytest.mark.parametrize(
    "body", [b"[%s,]", b"[,%s]", b"[1 2,%s]", b"[%s]]", b"[%s] x", b"[%s,{]", b"[%s,1", b'[%s,"]']
)
async def test_what_is_malformed_beside_it_is_told_so(body: bytes) -> None:
    with pytest.raises(Malformed):
        await elements(body.replace(b"%s", DEEP), 100)


async def test_an_array_that_ends_in_the_depths_is_too_deep() -> None:
    with pytest.raises(Invalid):
        await elements(b"[" * 5000, 100)


@pytest.mark.parametrize("filler", [b"\\\\", b'\\"', b"[", b"x"])
async def test_no_string_makes_it_slow(filler: bytes) -> None:
    """It takes a moment, or, if it ever were quadratic, days."""
    with pytest.raises((Malformed, Invalid)):
        await elements(b'["' + filler * (4 << 20), 100)


async def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"[[" + b"[]," * 10_000 + DEEP + b"]]"
    assert len(await elements(body, 100)) == 1
    monkeypatch.setattr("tandem_api.elements.MOST", 10_000)
    with pytest.raises(Invalid, match="nested too deeply"):
        await elements(body, 100)


async def test_a_deep_item_of_a_bulk_hurts_no_other(client: httpx2.AsyncClient) -> None:
    job: dict[str, Any] = {"task": "t.any", "payload": {"a": "]"}}
    good = msgspec.json.encode(job)
    body = b"[" + b",".join([good, b'{"task":"t.any","payload":{"a":' + DEEP + b"}}", good]) + b"]"
    answer = await client.post(
        "/v1/jobs/bulk", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    first, deep, last = answer.json()
    assert set(first) == set(last) == {"id"}
    assert deep["error"]["errors"] == [
        {"pointer": "", "detail": "is nested more than 64 levels deep"}
    ]
    answer = await client.post(
        "/v1/jobs/bulk", content=body[:-1], headers={"content-type": "application/json"}
    )
    assert problem(answer)[0] == 400
