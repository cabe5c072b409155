"""What clients may not ask of MongoDB: every way around it is refused before a command is sent."""

from collections.abc import Callable
from typing import Any

import pytest

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.extended_json import to_bson
from tandem_worker.errors import TaskError

JS = "function() { return true }"
FILTERS: list[Any] = [
    {"$where": JS},
    {"$where": {"$code": JS}},
    {"a": {"$where": JS}},
    {"$and": [{"a": 1}, {"$where": JS}]},
    {"$or": [{"$nor": [{"$and": [{"$where": JS}]}]}]},
    {"a": {"$not": {"$where": JS}}},
    {"a": {"$elemMatch": {"$where": JS}}},
    {"a": {"$in": [{"$where": JS}]}},
    {"a": {"b": {"$where": JS}}},
    {"a": {"$code": JS}},
    {"a": {"$code": JS, "$scope": {}}},
    {"$WHERE": JS},
    {"$": 1},
    {"$$where": JS},
    {"a": {"$regex": "x", "$where": JS}},
    {"$expr": {"$function": {"body": JS, "args": [], "lang": "js"}}},
    {"$expr": {"$and": [{"$eq": ["$a", {"$function": {"body": JS, "args": [], "lang": "js"}}]}]}},
    {"$and": [{"$expr": {"$cond": [{"$where": JS}, 1, 0]}}]},
    {"a": {"$elemMatch": {"$expr": {"$function": {}}}}},
    {"$expr": {"$accumulator": {}}},
    {"$expr": {"$elemMatch": {"$where": JS}}},
    {"$jsonSchema": {"required": ["a"]}},
    {"$sampleRate": 0.5},
    {"a": {"$regex": "a" * 1025}},
    {"a": {"$regularExpression": {"pattern": "a" * 1025, "options": ""}}},
    {"a": {"$in": [{"$regularExpression": {"pattern": "a" * 1025, "options": ""}}]}},
    {"a": {"$ref": "other", "$id": 1}},
    {"a": {"$ref": "other", "$id": {"$where": JS}}},
    {"a\0$where": JS},
]
PIPELINES: list[Any] = [
    [{"$out": "elsewhere"}],
    [{"$match": {}}, {"$merge": {"into": "elsewhere"}}],
    [{"$out": {"db": "admin", "coll": "x"}}],
    [{"$lookup": {"from": "users", "localField": "a", "foreignField": "b", "as": "c"}}],
    [{"$lookup": {"from": {"db": "admin", "coll": "system.users"}, "as": "c", "pipeline": []}}],
    [{"$lookup": {"as": "c", "pipeline": [{"$documents": [{}]}]}}],
    [{"$lookup": {"from": "allowed", "as": "c", "pipeline": [{"$match": {"$where": JS}}]}}],
    [
        {
            "$lookup": {
                "from": "allowed",
                "as": "c",
                "pipeline": [{"$lookup": {"from": "users", "as": "d"}}],
            }
        }
    ],
    [{"$lookup": {"from": "allowed", "as": "c", "let": {"x": {"$function": {}}}, "pipeline": []}}],
    [
        {
            "$graphLookup": {
                "from": "users",
                "startWith": "$a",
                "connectFromField": "a",
                "connectToField": "b",
                "as": "c",
            }
        }
    ],
    [{"$graphLookup": {"from": "allowed", "startWith": {"$function": {}}, "as": "c"}}],
    [
        {
            "$graphLookup": {
                "from": "allowed",
                "startWith": 1,
                "as": "c",
                "restrictSearchWithMatch": {"$where": JS},
            }
        }
    ],
    [{"$unionWith": "users"}],
    [{"$unionWith": {"coll": "users", "pipeline": []}}],
    [{"$unionWith": {"coll": "allowed", "pipeline": [{"$out": "x"}]}}],
    [{"$facet": {"a": [{"$out": "x"}]}}],
    [{"$facet": {"a": [{"$facet": {"b": [{"$match": {"$and": [{"$where": JS}]}}]}}]}}],
    [{"$facet": {"a": [{"$lookup": {"from": "users", "as": "x"}}]}}],
    [{"$facet": {"$where": []}}],
    [{"$facet": [{"$out": "x"}]}],
    [{"$facet": {"a": {"$out": "x"}}}],
    [{"$match": {"$expr": {"$function": {"body": JS, "args": [], "lang": "js"}}}}],
    [{"$group": {"_id": None, "n": {"$accumulator": {"init": JS}}}}],
    [{"$group": {"_id": {"$function": {"body": JS, "args": [], "lang": "js"}}}}],
    [{"$project": {"a": {"$cond": [True, {"$function": {}}, 0]}}}],
    [{"$addFields": {"a": {"b": {"c": [{"$function": {}}]}}}}],
    [{"$set": {"a": {"$literal": {"$where": JS}}}}],
    [{"$replaceRoot": {"newRoot": {"$function": {}}}}],
    [{"$redact": {"$function": {}}}],
    [{"$bucket": {"groupBy": {"$function": {}}, "boundaries": [0, 1]}}],
    [{"$setWindowFields": {"output": {"a": {"$function": {}}}}}],
    [{"$geoNear": {"near": [0, 0], "distanceField": "d", "query": {"$where": JS}}}],
    [{"$currentOp": {"allUsers": True}}],
    [{"$listSessions": {}}],
    [{"$listLocalSessions": {}}],
    [{"$collStats": {"storageStats": {}}}],
    [{"$indexStats": {}}],
    [{"$planCacheStats": {}}],
    [{"$changeStream": {}}],
    [{"$search": {}}],
    [{"$documents": [{}]}],
    [{"$match": {}, "$out": "x"}],
    [{}],
    [{"match": {}}],
    [{"$match": {}}] * 201,
]
UPDATES: list[Any] = [
    {},
    {"a": 1},
    {"$set": {"a": 1}, "b": 1},
    {"$where": JS},
    {"$set": {"$where": JS}},
    {"$set": {"a": {"b": [{"$where": JS}]}}},
    {"$set": {"a": {"$code": JS}}},
    {"$push": {"a": {"$each": [{"$where": JS}]}}},
    {"$push": {"a": {"$function": {}}}},
    {"$addToSet": {"a": {"$each": [], "$where": JS}}},
    {"$pull": {"a": {"$where": JS}}},
    {"$pull": {"a": {"$elemMatch": {"$where": JS}}}},
    {"$setOnInsert": {"a": {"$out": "x"}}},
    {"$currentDate": {"a": {"$where": "date"}}},
    [{"$set": {"a": {"$function": {}}}}],
    [{"$lookup": {"from": "allowed", "as": "x"}}],
    [{"$out": "x"}],
    [{"$match": {}}],
    ["$set"],
]
PROJECTIONS: list[Any] = [
    {"a": {"$function": {}}},
    {"a": {"$elemMatch": {"$where": JS}}},
    {"a": {"b": {"$accumulator": {}}}},
    {"$where": 1},
]
DOCUMENTS: list[Any] = [
    {"$set": {"a": 1}},
    {"a": {"$where": JS}},
    {"a": [{"b": {"$gt": ""}}]},
    {"a\0": 1},
]


def pipeline(value: Any) -> None:
    allowlist.check_pipeline(value, readable={"allowed"})


CASES = [
    *((allowlist.check_filter, case) for case in FILTERS),
    *((pipeline, case) for case in PIPELINES),
    *((allowlist.check_update, case) for case in UPDATES),
    *((allowlist.check_projection, case) for case in PROJECTIONS),
    *((allowlist.check_document, case) for case in DOCUMENTS),
]


@pytest.mark.parametrize(("check", "given"), CASES)
def test_refused(check: Callable[[Any], None], given: Any) -> None:
    with pytest.raises(TaskError) as caught:
        check(to_bson(given, "payload"))
    assert caught.value.type == "forbidden_operator"
    assert caught.value.retryable is False


@pytest.mark.parametrize(
    ("check", "given"),
    [
        (allowlist.check_filter, {"$and": [{"a": {"$gte": 1, "$lt": 5}}, {"b": {"$in": [1]}}]}),
        (allowlist.check_filter, {"b": {"$elemMatch": {"c": {"$in": [1]}}}}),
        (allowlist.check_filter, {"$expr": {"$gt": ["$a", {"$add": ["$b", 1]}]}}),
        (allowlist.check_filter, {"b": {"$regex": "^a"}}),
        (allowlist.check_filter, {"at": {"$lt": {"$date": "2026-01-01T00:00:00Z"}}}),
        (pipeline, [{"$match": {"a": 1}}, {"$sort": {"n": -1}}]),
        (pipeline, [{"$group": {"_id": "$a", "n": {"$sum": 1}}}]),
        (pipeline, [{"$facet": {"a": [{"$count": "n"}], "b": [{"$sortByCount": "$x"}]}}]),
        (
            pipeline,
            [{"$lookup": {"from": "allowed", "localField": "a", "foreignField": "b", "as": "c"}}],
        ),
        (pipeline, [{"$unionWith": "allowed"}]),
        (allowlist.check_update, {"$set": {"a.b": 1}, "$inc": {"n": 1}}),
        (allowlist.check_update, {"$push": {"c": {"$each": [1], "$slice": -5}}}),
        (allowlist.check_update, {"$pull": {"a": {"$in": [1, 2]}}}),
        (allowlist.check_update, [{"$set": {"total": {"$multiply": ["$n", "$price"]}}}]),
        (allowlist.check_projection, {"a": 1, "b": {"$slice": 3}}),
        (allowlist.check_projection, {"c": {"$elemMatch": {"d": {"$gt": 1}}}}),
        (allowlist.check_document, {"a": {"b": [{"c.d": 1}]}, "f": {"$code": JS}}),
        (allowlist.check_document, {"price": {"$numberDecimal": "1.10"}}),
    ],
)  # fmt: skip
def test_allowed(check: Callable[[Any], None], given: Any) -> None:
    check(to_bson(given, "payload"))


@pytest.mark.parametrize("name", ["system.users", "system.js", "a$b", "tandem_applied", "", "a\0b"])
def test_reserved_collections_are_refused(name: str) -> None:
    with pytest.raises(TaskError, match="may not use the collection"):
        allowlist.check_collection(name)
