"""A maker of payloads for every built-in task. Files in them are Materials, uploaded later."""

from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.material import TABLES, Material, material
from tests.fuzz.values import LEAVES, text, value

TYPES = """
    int2 int4 int8 float4 float8 numeric numeric(5,2) bool text varchar(3) char(4) bytea date time
    timetz timestamp timestamptz interval json jsonb uuid inet cidr macaddr bit(5) varbit xml money
    point path polygon circle int4range daterange nummultirange tsvector int4[] text[] date[]
    numeric[] jsonb[] oid "char" name
""".split()
Maker = Callable[[Random, str], Any]  # the second is the URL of the hostile server


def _one(*kinds: str) -> Callable[[Random], Material]:
    return lambda random: material(random, *kinds)


any_file, table, archive = _one(), _one(*TABLES), _one("zip", "zip", "tar", "tar", "bin")


def _some(random: Random, **optional: list[Any]) -> dict[str, Any]:
    """Some of the optional fields, each with one of its values."""
    return {name: random.choice(pool) for name, pool in optional.items() if random.random() < 0.4}


def _request(random: Random, url: str) -> dict[str, Any]:
    path = random.choice(("", "?", "?a=b", "#f", "/../x", "?q=%zz", "?" + text(random)[:5]))
    return {
        "url": f"{url}{path}",
        "expect_status": ["1xx", "2xx", "3xx", "4xx", "5xx"],
        **_some(
            random,
            method=["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"],
            headers=[{"X-A": text(random)[:20]}, {"Cookie": "a=b"}, {"Accept-Encoding": "br"}],
            params=[{"q": random.choice(LEAVES)}, {text(random)[:9]: [1, None, True]}],
            max_bytes=[0, 1, 1 << 20],
            retry_unsafe=[True],
        ),
        **random.choice(({}, {}, {"json": value(random)}, {"body": text(random)})),
    }


def _sql(random: Random) -> tuple[str, dict[str, Any]]:
    """A connection, and a statement with its params."""
    if random.random() < 0.6:
        type_ = random.choice(TYPES)
        form = random.choice(("SELECT $1::{0} AS a", "SELECT array[$1::{0}], ROW($1::{0}) AS r"))
        return "pg", {"sql": form.format(type_), "params": [value(random, 1)]}
    forms = ("SELECT ? AS a", "SELECT ? + 1", "SELECT json(?)", "SELECT * FROM things WHERE a = ?")
    return "lite", {"sql": random.choice(forms), "params": [value(random, 1)]}


def sql_query(random: Random, _: str) -> Any:
    connection, statement = _sql(random)
    return {"connection": connection, **statement, **_some(random, **{"as": ["result", "output"]})}


def sql_export(random: Random, _: str) -> Any:
    connection, statement = _sql(random)
    more = _some(random, compression=["gzip", "zstd"], max_bytes=[1, 100])
    return {
        "connection": connection,
        **statement,
        "format": random.choice(("csv", "ndjson", "parquet")),
        **more,
    }


def sql_execute(random: Random, _: str) -> Any:
    connection = random.choice(("pg", "lite"))
    insert = random.choice(
        (
            "INSERT INTO things (a, b) VALUES (:a, :b)",
            "UPDATE things SET b = :b WHERE a = :a",
            "DELETE FROM things WHERE a = :a AND b = :b",
        )
    )
    params = {"a": value(random, 1), "b": value(random, 1)}
    given = random.choice(({"params": params}, {"rows": [params, params]}))
    return {"connection": connection, "statements": [{"sql": insert, **given}]}


def sql_import(random: Random, _: str) -> Any:
    return {
        "connection": random.choice(("pg", "lite")),
        "table": random.choice(("loose", "loose", "items", "all_types")),
        "source": table(random),
        **_some(
            random,
            format=["csv", "ndjson", "parquet"],
            columns=[["item", "amount"], ["item"]],
            batch=[1, 2],
            max_bad=[0, 1, 100],
        ),
        **random.choice(({}, {}, {"mode": "upsert", "key": ["item"]})),
    }


def _documents(random: Random) -> list[Any]:
    special = [
        {"$oid": "0" * 24}, {"$date": text(random)}, {"$numberDecimal": text(random)},
        {"$numberLong": "9" * 19}, {"$numberDouble": "-0.0"},
        {"$binary": {"base64": "AA", "subType": "0"}},
        {"$timestamp": {"t": 1, "i": -1}}, {"$regularExpression": {"pattern": "(", "options": "z"}},
        {"$minKey": 1}, {"$uuid": "x"}, {"$code": "x"},
    ]  # fmt: skip
    return [
        {
            "a": random.choice((random.choice(special), value(random))),
            text(random): value(random, 1),
        }
        for _ in range(random.randrange(1, 4))
    ]


def _mongo(random: Random, **more: Any) -> dict[str, Any]:
    return {"connection": "mongo", "collection": random.choice(("things", "items")), **more}


def _filter(random: Random) -> Any:
    operator = random.choice(("$eq", "$in", "$regex", "$where", "$expr", "$type", "$exists", "$gt"))
    return random.choice(({}, {"a": value(random, 1)}, {"a": {operator: value(random, 1)}}))


def _read(random: Random) -> dict[str, Any]:
    return _some(
        random,
        projection=[{"a": 1}, {"a": 0, "b": 1}, {"a": {"$slice": value(random, 1)}}],
        sort=[{"a": 1}, {"a": -1, "b": 1}],
        limit=[1],
        extended_json=["canonical", "relaxed"],
    )


def _pipeline(random: Random) -> Any:
    stages: tuple[Any, ...] = (
        {"$match": _filter(random)}, {"$limit": value(random, 0)}, {"$project": {"a": 1}},
        {"$group": {"_id": "$a", "n": {"$sum": 1}}}, {"$out": "x"}, {"$unwind": text(random)},
    )  # fmt: skip
    return [random.choice(stages) for _ in range(random.randrange(3))]


def mail(random: Random, _: str) -> Any:
    word = text(random)[:40]
    to = [
        "b@example.org", "Büro <b@bücher.example>", f'"{word}" <b@example.org>', f"{word} <b@c.d>",
        f"{word}@example.org", f"b@{word}",
    ]  # fmt: skip
    return {
        "from": "a@example.org",
        "to": random.choice((random.choice(to), [random.choice(to)])),
        "subject": text(random),
        **_some(
            random,
            text=[text(random), "x" * 2000, ".\r\n..\r\n"],
            html=[text(random)],
            cc=to,
            reply_to=to,
            attachments=[[any_file(random)]],
        ),
    }


MAKERS: dict[str, Maker] = {
    "http.request": _request,
    "http.download": lambda random, url: {
        "url": url, **_some(random, max_bytes=[0, 10], name=["x", text(random)], sha256=["0" * 64])
    },
    "http.gather": lambda random, url: {
        "requests": [_request(random, url) for _ in range(random.randrange(3))],
        **_some(random, on_error=["fail", "collect"]),
    },
    "http.race": lambda random, url: {
        "requests": [_request(random, url) for _ in range(random.randrange(1, 3))]
    },
    "http.webhook": lambda random, url: {
        "url": url, "type": "t", "data": value(random),
        **_some(random, secret=["whsec_" + "A" * 32], subject=["s", text(random)[:9]]),
    },
    "sql.query": sql_query,
    "sql.export": sql_export,
    "sql.execute": sql_execute,
    "sql.import": sql_import,
    "mongo.find": lambda random, _: _mongo(random, filter=_filter(random), **_read(random)),
    "mongo.aggregate": lambda random, _: _mongo(random, pipeline=_pipeline(random)),
    "mongo.insert": lambda random, _: _mongo(random, documents=_documents(random)),
    "mongo.update": lambda random, _: _mongo(
        random,
        filter=_filter(random),
        update=random.choice(({"$set": {"a": value(random)}}, {"$inc": {"a": value(random, 0)}})),
        **_some(random, many=[True], upsert=[True]),
    ),
    "mongo.delete": lambda random, _: _mongo(random, filter=_filter(random)),
    "mongo.export": lambda random, _: _mongo(
        random, filter=_filter(random), format=random.choice(("ndjson", "csv", "json", "parquet"))
    ),
    "mongo.import": lambda random, _: _mongo(
        random, source=table(random), **_some(random, format=["csv", "ndjson", "json"])
    ),
    "file.hash": lambda random, _: {
        "source": any_file(random), "algorithms": ["sha256", "md5", "blake2b"]
    },
    "file.convert": lambda random, _: {
        "source": table(random),
        "to": random.choice(("csv", "ndjson", "json", "parquet")),
        **_some(
            random,
            **{"from": ["csv", "ndjson", "json", "parquet"]},
            compression=["gzip", "zstd"],
            delimiter=[",", ";", "\t"],
            encoding=["utf-8", "latin-1", "utf-16", "cp1252", "utf-7", "idna", "shift_jis"],
        ),
    },
    "file.archive": lambda random, _: {
        "sources": [any_file(random) for _ in range(random.randrange(1, 4))],
        "format": random.choice(("zip", "tar", "tar.gz", "tar.zst")),
    },
    "file.extract": lambda random, _: {
        "source": archive(random), **_some(random, max_entries=[1, 2], max_bytes=[1, 100])
    },
    "file.concat": lambda random, _: {
        "sources": [table(random) for _ in range(random.randrange(1, 4))],
        **_some(random, header=[True, False]),
    },
    "file.split": lambda random, _: {
        "source": table(random),
        **random.choice(({"rows": 1}, {"rows": 3}, {"bytes": 50}, {"bytes": 1000})),
        **_some(random, header=[True, False], format=["csv", "ndjson"]),
    },
    "email.send": mail,
}  # fmt: skip
