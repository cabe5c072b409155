"""Every type of PostgreSQL that holds data, with literals at its edges."""

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'a "quoted", \\ one');
CREATE DOMAIN positive AS integer CHECK (value > 0);
CREATE DOMAIN exact AS numeric(20, 4);
CREATE DOMAIN moments AS timestamptz[];
CREATE TYPE inner_pair AS (n numeric, at timestamptz);
CREATE TYPE pair AS (
    id integer, name text, span interval, doc jsonb, days date[], "in" inner_pair, words tsvector
);
"""

TEXTS = [
    "",
    " ",
    "ä€🎉",
    'q"uo,te',
    "a\\b",
    "NULL",
    "null",
    "{a,b}",
    "line\nfeed",
    "tab\there",
    "\\N",
    "=1+1",
    "'",
]
MOMENTS = [
    "2026-01-02 03:04:05.678901",
    "0001-01-01 00:00:00",
    "9999-12-31 23:59:59.999999",
    "1969-12-31 23:59:59.999999",
]
FAR_MOMENTS = ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "10000-01-01 00:00:00"]
FAR_DAYS = ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31"]

# What Parquet's own date and time types can hold too.
COMMON: dict[str, list[str]] = {
    "bool": ["t", "f"],
    "int2": ["-32768", "0", "32767"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9007199254740993", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "float4": ["0.1", "-0", "3.4028235e+38", "1e-45", "NaN", "Infinity", "-Infinity", "16777217"],
    "float8": ["0.1", "-0", "5e-324", "1.7976931348623157e308", "NaN", "Infinity", "-Infinity"],
    "numeric": [
        "0",
        "0.0000001",
        "-1.10",
        "1e30",
        "NaN",
        "Infinity",
        "100000000000000.01",
        "9" * 1000,
    ],
    "numeric(12,2)": ["19.90", "0", "-9999999999.99"],
    "money": ["1.00", "-92233720368547758.08"],
    "text": TEXTS,
    "varchar(40)": TEXTS,
    "char(6)": ["ab", "", "ä"],
    "name": ["table", ""],
    '"char"': ["r", "", "\\377"],
    "bytea": ["\\x", "\\x00ff", "\\x5c7830"],
    "date": ["2026-01-02", "0001-01-01", "9999-12-31", "1969-12-31"],
    "time": ["00:00:00", "23:59:59.999999"],
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS,
    "timetz": ["00:00:00+00", "12:00:00.5-03:30", "24:00:00-15:59", "23:59:59.999999+15:59"],
    "interval": ["0", "1 mon -2 days 03:00:00.5", "-1 year", "178000000 years", "-00:00:00.000001"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a": 100000000000000.01, "a": 1e400}', '"5"', "5", "null", '"\\ud800"', "[1,\n 2]"],
    "jsonb": ['{"a": [1, null, "x"]}', "12345678901234567890.5", '"text"', '"5"', "null", "-0.0"],
    "inet": ["10.0.0.1", "10.0.0.1/24", "::1", "fe80::1/64"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(5)": ["10101", "00000"],
    "varbit": ["1", "", "0000000001"],
    "tsvector": ["'a':1A 'b c':2", ""],
    "tsquery": ["'a' & !'b'"],
    "xml": ["<a>&lt;</a>"],
    "pg_lsn": ["16/B374D848"],
    "point": ["(1,2)", "(-0,NaN)", "(1e300,Infinity)"],
    "line": ["{1,2,3}"],
    "lseg": ["[(1,2),(3,4)]"],
    "box": ["(3,4),(1,2)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "circle": ["<(1,2),3>"],
    "int4range": ["empty", "[1,5)", "(,)", "[7,)"],
    "numrange": ["[1.10,2]", "(,0.0000001)"],
    "tsrange": ['["2026-01-01 00:00:00",infinity)', '["0044-03-15 00:00:00 BC",)'],
    "tstzrange": ['["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00"]'],
    "daterange": ["[2026-01-01,infinity)", "[,10000-01-01)"],
    "int4multirange": ["{}", "{[1,3),[5,7)}"],
    "datemultirange": ["{[2026-01-01,2026-01-03),[2027-01-01,)}"],
    "mood": ["sad", 'a "quoted", \\ one'],
    "positive": ["1"],
    "exact": ["1.1000"],
    "pair": [
        (
            '(1,"a,""b\\\\c",P1M2D,"{""a"": 1.10}","{2026-01-01,infinity,NULL}",'
            '"(1.10,""0044-01-01 00:00:00+00 BC"")","\'x\':1")'
        ),
        "(,,,,,,)",
        '(,"",,,{},"(,)","")',
    ],
}
# Texts that are a value of one type, or of one program's reading of it, and not of another.
NEARLY_VALUES = [
    *("", " ", "1", " 1 ", "+1", "01", "1.0", "1.5", "1e3", ".5", "5.", "1e", "--1", "1 2"),
    *("١", "1２", "1\u00a0", "\v1", "\u20071", "\x011", "1f", "1.e5", "9" * 400),
    *("NaN", "nan", "inf", "-Infinity", "infinit", "\u00a0nan", "1e400", "1e-400", "2e-324"),
    *("9223372036854775808", "-9223372036854775809", "2147483648", "32768", "4294967296"),
    *("true", " TRUE ", "o", "of", "tr", "\u00a0t", "\\x0", "\\xZZ", "\\x 00", "epoch", "null"),
    *("2026-02-30", "2026-01-02", "25:00", "P1D", "{", "$1", "()"),
]
# Types of which only NEARLY_VALUES are tried.
SCALARS = ("varchar(2)", "xid", "numeric(4,1)", "bit(3)", "varbit(2)")
# Beyond what Parquet's date and time types hold: an error of the job there.
FAR: dict[str, list[str]] = {
    "date": FAR_DAYS,
    "time": ["24:00:00"],
    "timestamp": FAR_MOMENTS,
    "timestamptz": FAR_MOMENTS,
}


def array_literal(values: list[str]) -> str:
    """The values, and a null, as an array literal."""
    quoted = ('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return "{" + ",".join([*quoted, "NULL"]) + "}"


# What JSON inside JSON does not keep of json and jsonb: a key that comes twice, half of a surrogate
# pair, and null, which is SQL's. Spaces and the spelling of numbers are not kept either.
NOT_INSIDE_JSON = {'{"a": 100000000000000.01, "a": 1e400}', '"\\ud800"', "null"}


def columns(*, far: bool, inside_json: bool = False) -> dict[str, list[str | None]]:
    """Column type → values, with its array type for each."""
    found: dict[str, list[str | None]] = {}
    for name, every_near in COMMON.items():
        left_out = NOT_INSIDE_JSON if inside_json and name.startswith("json") else set[str]()
        near = [value for value in every_near if value not in left_out]
        values = near + (FAR.get(name, []) if far else [])
        found[name] = [None, *values]
        every = near + FAR.get(name, [])
        delimiter = ";" if name == "box" else ","
        array = array_literal(every) if delimiter == "," else "{" + ";".join(every) + ";NULL}"
        found[f"{name}[]"] = [None, "{}", array]
    return found
