"""Random values of every type of PostgreSQL, made by the server itself.

Four of ten values are edges (tests/faithful/postgres_types.py), one of ten is null. Arrays are
empty, have nulls, two dimensions or other lower bounds.
"""

from tests.faithful.postgres_types import COMMON, FAR, NOT_INSIDE_JSON
from tests.faithful.psql import psql

EXTENSIONS = ("citext", "cube", "hstore", "isn", "ltree", "seg", "vector")

SETUP = r"""
CREATE TYPE floatrange AS RANGE (subtype = float8);
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE DOMAIN numbers AS integer[] CHECK (array_ndims(value) < 4);
CREATE DOMAIN whole_pair AS pair;
CREATE TYPE geometry AS (at point, path path, ways path[], boxes box[], raw bytea, raws bytea[]);
CREATE TYPE nested AS (
    pairs pair[], geometry geometry, docs jsonb[], "odd ""name" text, numbers numbers, kind "char"
);
CREATE FUNCTION pick(choices anyarray) RETURNS anyelement LANGUAGE sql VOLATILE AS
    'SELECT choices[1 + floor(random() * array_length(choices, 1))::int]';
CREATE FUNCTION bits() RETURNS bit(128) LANGUAGE sql VOLATILE AS
    $$SELECT ('x' || md5(random()::text))::bit(128)$$;
CREATE FUNCTION letters() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    made text := '';
    signs text[] := ARRAY['a', 'B', '7', '"', '\', '''', ',', '{', '}', '(', ')', '[', ']', ' ',
        'NULL', '\N', '\.', 'ä', 'e' || chr(769), '日', '🎉', ';', '|', ':', '%', '=', '-', '"x"',
        chr(9), chr(10), chr(13), chr(1), chr(127), chr(133), chr(8232), chr(65279), chr(1114111)];
BEGIN
    FOR i IN 1 .. floor(random() * 9) LOOP made := made || pick(signs); END LOOP;
    RETURN made;
END $$;
CREATE FUNCTION word() RETURNS text LANGUAGE sql VOLATILE AS
    'SELECT translate(letters(), chr(1) || chr(127), $$xy$$) || pick($${q,w,z}$$::text[])';
CREATE FUNCTION number() RETURNS numeric LANGUAGE sql VOLATILE AS
    'SELECT round(bits()::bit(64)::int8 * 10::numeric ^ floor(random() * 60 - 30)::int,
        floor(random() * 40)::int)';
CREATE FUNCTION fraction() RETURNS float8 LANGUAGE sql VOLATILE AS
    'SELECT (random() - 0.5) * 10 ^ (random() * 600 - 300)';
CREATE FUNCTION doc() RETURNS json LANGUAGE sql VOLATILE AS
    'SELECT json_build_object(letters(), number(), word(),
        json_build_array(letters(), fraction(), NULL, random() < 0.5))';
"""

_BOUNDS = "pick('{[],[),(],()}'::text[])"


def _ordered(name: str, value: str, step: str) -> str:
    return (
        f"(SELECT {name}(CASE WHEN random() < 0.1 THEN NULL ELSE low END,"
        f" CASE WHEN random() < 0.1 THEN NULL ELSE low + {step} END, {_BOUNDS})"
        f" FROM (SELECT {value} AS low) AS bounds)"
    )


_DAY = "(date '0001-01-01' + floor(random() * 3652058)::int)"
_MOMENT = "(timestamp '0001-01-01' + random() * interval '3652058 days')"
_MAC = "substr(md5(random()::text), 1, {})"
# Type → an expression for one random value; types without one have edges only.
VALUES: dict[str, str] = {
    "bool": "random() < 0.5",
    "int2": "(random() * 65535 - 32768)::int2",
    "int4": "bits()::bit(32)::int4",
    "int8": "bits()::bit(64)::int8",
    "oid": "floor(random() * 4294967296)::int8::oid",
    "float4": "((random() - 0.5) * 10 ^ (random() * 70 - 35))::float4",
    "float8": "fraction()",
    "numeric": "number()",
    "numeric(12,2)": "round((random() * 1e9)::numeric, 2)",
    "money": "(random() * 1e12 - 5e11)::numeric::money",
    "text": "letters()",
    "varchar(40)": "left(letters(), 40)",
    "char(6)": "left(letters(), 6)",
    "name": "left(letters(), 15)",
    '"char"': 'chr(1 + floor(random() * 127)::int)::"char"',
    "bytea": "substr(decode(md5(random()::text), 'hex'), 1, floor(random() * 17)::int)",
    "date": _DAY,
    "time": "time '00:00' + random() * interval '24 hours'",
    "timestamp": _MOMENT,
    "timestamptz": f"{_MOMENT} AT TIME ZONE 'UTC'",
    "timetz": "((time '00:00' + random() * interval '24 hours')::text"
    " || pick('{+00,-15:59,+05:45,+00:00:01}'::text[]))::timetz",
    "interval": "make_interval((random() * 200 - 100)::int, (random() * 40 - 20)::int, 0,"
    " (random() * 100 - 50)::int, (random() * 60 - 30)::int, 0, random() * 100 - 50)",
    "uuid": "md5(random()::text)::uuid",
    "json": "doc()",
    "jsonb": "doc()::jsonb",
    "inet": "('10.1.' || (random() * 255)::int || '.7/' || (random() * 32)::int)::inet",
    "cidr": "network(('10.1.' || (random() * 255)::int || '.7/' || (random() * 32)::int)::inet)",
    "macaddr": f"{_MAC.format(12)}::macaddr",
    "macaddr8": f"{_MAC.format(16)}::macaddr8",
    "bit(5)": "bits()::bit(5)",
    "varbit": "left(bits()::text, floor(random() * 128)::int)::varbit",
    "tsvector": "array_to_tsvector(ARRAY[word(), word()])",
    "tsquery": "websearch_to_tsquery('simple', word() || ' or ' || word())",
    "xml": "xmlelement(name a, xmlattributes(word() AS b), word())",
    "pg_lsn": "'0/0'::pg_lsn + floor(random() * 2 ^ 62)::numeric",
    "xid": "floor(random() * 4294967296)::int8::text::xid",
    "xid8": "floor(random() * 2 ^ 62)::int8::text::xid8",
    "cid": "floor(random() * 4294967296)::int8::text::cid",
    "tid": "format('(%s,%s)', floor(random() * 4294967296)::int8, (random() * 65535)::int)::tid",
    "point": "point(fraction(), fraction())",
    "line": "format('{%s,%s,%s}', fraction(), random() + 1, fraction())::line",
    "lseg": "lseg(point(fraction(), random()), point(random(), fraction()))",
    "box": "box(point(fraction(), random()), point(random(), fraction()))",
    "path": "format(pick(ARRAY['[%s,%s]', '(%s,%s)']), point(fraction(), random()),"
    " point(random(), fraction()))::path",
    "polygon": "polygon(3 + floor(random() * 4)::int, circle(point(random(), random()), 2))",
    "circle": "circle(point(fraction(), fraction()), random() * 1e9)",
    "int4range": _ordered("int4range", "bits()::bit(30)::int4", "(random() * 1e6)::int4"),
    "int8range": _ordered("int8range", "bits()::bit(62)::int8", "(random() * 1e6)::int8"),
    "numrange": _ordered("numrange", "number()", "random()::numeric"),
    "tsrange": _ordered("tsrange", _MOMENT, "random() * interval '9 days'"),
    "tstzrange": _ordered("tstzrange", f"({_MOMENT} AT TIME ZONE 'UTC')", "interval '1 day'"),
    "daterange": _ordered("daterange", _DAY, "(random() * 1000)::int"),
    "floatrange": _ordered("floatrange", "fraction()", "1e300::float8"),
    "textrange": "textrange(word(), repeat(chr(1114111), 10) || word(), '[]')",
    "int4multirange": "int4multirange(int4range(1, (random() * 1000)::int + 1),"
    " int4range(2000, 2001 + (random() * 1000)::int))",
    "positive": "1 + floor(random() * 1e9)::int",
    "exact": "round((random() * 1e12)::numeric, 4)",
    "moments": f"ARRAY[{_MOMENT} AT TIME ZONE 'UTC', 'infinity', NULL]",
    "numbers": "ARRAY[bits()::bit(32)::int4, NULL, 5]",
    "inner_pair": f"ROW(number(), {_MOMENT} AT TIME ZONE 'UTC')::inner_pair",
    "pair": "ROW(bits()::bit(32)::int4, letters(), make_interval(secs => random() * 1e6),"
    f" doc()::jsonb, ARRAY[{_DAY}, NULL], ROW(number(), 'infinity'),"
    " array_to_tsvector(ARRAY[word()]))::pair",
    "whole_pair": "ROW(5, letters(), NULL, doc()::jsonb, '{}', NULL, '')::pair",
    "geometry": "ROW(point(fraction(), random()), '[(0,1),(2,3)]',"
    """ '{"[(0,0),(1,1)]","((0,0),(1,1))"}', '{(1,1),(0,0);(2,2),(1,1)}', '\\x00ff5c',"""
    r""" ARRAY['\x'::bytea, '\x5c78', NULL])::geometry""",
    "nested": "ROW(ARRAY[ROW(1, letters(), NULL, doc()::jsonb, NULL, ROW(number(), NULL), '')"
    "::pair, NULL], NULL, ARRAY[doc()::jsonb, '[1, [2]]', NULL], letters(), '[2:3]={1,2}',"
    " 'x')::nested",
    "citext": "letters()::citext",
    "hstore": "hstore(ARRAY[word(), word()], ARRAY[letters(), NULL])",
    "cube": "cube(ARRAY[random(), fraction()])",
}
EDGES: dict[str, list[str]] = {
    **COMMON,
    "refcursor": ["", "a b"],
    "regclass": ["pg_catalog.pg_class"],
    "regproc": ["now"],
    "regprocedure": ["now()", "abs(integer)"],
    "regoper": ["|/"],
    "regoperator": ["+(integer,integer)"],
    "regtype": ['"char"', "timestamp with time zone", "int4[]"],
    "regnamespace": ["pg_catalog"],
    "regrole": ["postgres"],
    "regconfig": ["simple"],
    "regdictionary": ["simple"],
    "regcollation": ['"C"'],
    "pg_snapshot": ["10:20:10,14,15"],
    "txid_snapshot": ["10:20:10,14,15"],
    "jsonpath": ['$."a"[*]?(@ > 1)', 'lax $."q\\"uo"'],
    "aclitem": ["postgres=arwd/postgres"],
    "int2vector": ["1 -2 3"],
    "oidvector": ["1 4294967295"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1))", "[(-0,1)]"],
    "moments": ["{}", "[0:1]={infinity,NULL}", "{{1999-01-01 00:00:00+00},{-infinity}}"],
    "numbers": ["{}", "[2:3][-1:0]={{1,2},{3,NULL}}"],
    "textrange": ['["",)', "empty", '["a""b\\\\c,d","x(]"]'],
    "floatrange": ["[-0,NaN]", "(-Infinity,5e-324)"],
    "nummultirange": ["{}", "{(,1.10),[2,NaN]}"],
    "tsmultirange": ['{["0044-03-15 00:00:00 BC",infinity)}'],
    "tstzmultirange": ['{(,"2026-01-01 00:00:00+00"]}'],
    "int8multirange": ["{(,9223372036854775807)}"],
    "citext": ["", "Ä"],
    "hstore": ["", '"a b"=>NULL, "q\\"u"=>"{}"'],
    "isbn": ["978-0-393-04002-9"],
    "ltree": ["a.b_c.D", ""],
    "lquery": ["*.a|b.!c{1,}"],
    "seg": ["1.50 .. 2", "~7", "< 0.1"],
    "vector": ["[1,-2.5,3e-20]"],
}
# Types that belong to an extension, which the server may not have.
_OF_EXTENSION = {
    "citext": "citext", "cube": "cube", "hstore": "hstore", "isbn": "isn", "ltree": "ltree",
    "lquery": "ltree", "seg": "seg", "vector": "vector",
}  # fmt: skip


def literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def make_types(url: str) -> dict[str, str]:
    """Column name → its type, in a database that has the types of `SETUP` in postgres_types.

    The names of columns with values that Parquet's own types cannot hold start with `far`.
    """
    listed = ", ".join(f"'{name}'" for name in EXTENSIONS)
    found = {
        row[0]
        for row in psql(url, f"SELECT name FROM pg_available_extensions WHERE name IN ({listed})")
    }
    script = [f"CREATE EXTENSION {name}" for name in sorted(filter(None, found))]
    script.append(SETUP)
    columns: dict[str, str] = {}
    every = [name for name in {**EDGES, **VALUES} if _OF_EXTENSION.get(name, "") in {"", *found}]
    for type_ in every:
        left_out = NOT_INSIDE_JSON if type_ in ("json", "jsonb") else set[str]()
        near = [edge for edge in EDGES.get(type_, []) if edge not in left_out]
        kinds = {"c": near, "far": near + FAR[type_]} if type_ in FAR else {"c": near}
        for kind, edges in kinds.items():
            number = f"{kind}{len(columns)}"
            script += _functions(number, type_, edges)
            columns[number] = type_
            columns[f"{number}s"] = f"{type_}[]"
    psql(url, ";\n".join(script))
    return columns


def _functions(name: str, type_: str, edges: list[str]) -> list[str]:
    """A function for one value, and one for an array of values."""
    value = VALUES.get(type_, "NULL")
    if edges:
        edge = f"pick(ARRAY[{', '.join(map(literal, edges))}]::text[])::{type_}"
        odds = "0.4" if type_ in VALUES else "2"
        value = f"CASE WHEN random() < {odds} THEN {edge} ELSE {value} END"
    one = f"v{name}()"
    array = f"""CASE floor(random() * 6)
        WHEN 0 THEN '{{}}'
        WHEN 1 THEN ARRAY[[{one}, NULL], [{one}, {one}]]::{type_}[]
        WHEN 2 THEN ('[0:1]=' || ARRAY[{one}, {one}]::{type_}[]::text)::{type_}[]
        WHEN 3 THEN ARRAY[NULL, {one}]::{type_}[]
        ELSE ARRAY[{one}, {one}, {one}]::{type_}[] END"""
    head = "LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN"
    return [
        f"CREATE FUNCTION v{name}() RETURNS {type_} {head} {value}; END $$",
        f"CREATE FUNCTION v{name}s() RETURNS {type_}[] {head} {array}; END $$",
    ]


def fill(url: str, columns: dict[str, str], rows: int, seed: int) -> None:
    """New tables: `here` has the rows, `there` is empty."""
    definitions = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    values = ", ".join(f"CASE WHEN random() < 0.9 THEN v{name}() END" for name in columns)
    psql(
        url,
        f"DROP TABLE IF EXISTS here, there; CREATE UNLOGGED TABLE here ({definitions});"
        f" CREATE UNLOGGED TABLE there ({definitions}); SELECT setseed({seed % 1000 / 1000});"
        f" INSERT INTO here SELECT {values} FROM generate_series(1, {rows})",
    )


def far(columns: dict[str, str]) -> set[str]:
    """The columns that may hold times which Parquet's own types cannot."""
    return {name for name, type_ in columns.items() if name.startswith("far") and type_ in FAR}


def differences(url: str, columns: dict[str, str], *, spelled: bool) -> list[list[str | None]]:
    """[column, type, table, value] of values that only one of `here` and `there` has.

    All values are compared as text; json is if `spelled`, else as jsonb.
    """
    shown = {name: _as_text(name, type_, spelled=spelled) for name, type_ in columns.items()}
    every = ", ".join(shown.values())
    tables = (("here", "there"), ("there", "here"))
    rows = " UNION ALL ".join(f"({_except_all(every, *pair)})" for pair in tables)
    if psql(url, f"SELECT count(*) FROM ({rows}) AS rows") == [["0"]]:
        return []
    parts = [
        f"(SELECT '{name}', '{columns[name]}', '{pair[0]}', text FROM"
        f" ({_except_all(f'{text} AS text', *pair)}) AS texts)"
        for name, text in shown.items()
        for pair in tables
    ]
    return psql(url, " UNION ALL ".join(parts) + " LIMIT 6")


def _as_text(name: str, type_: str, *, spelled: bool) -> str:
    if spelled or type_ not in ("json", "json[]"):
        return f"{name}::text"
    return f"{name}::text::{type_.replace('json', 'jsonb')}::text"


def _except_all(expressions: str, one: str, other: str) -> str:
    """The rows of one table that the other does not have as often."""
    return f"SELECT {expressions} FROM {one} EXCEPT ALL SELECT {expressions} FROM {other}"
