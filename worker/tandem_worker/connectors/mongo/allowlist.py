"""What clients may ask of MongoDB: allow-lists of operators and stages, walked over every key at every depth.

What is not listed is refused, so that a server's next version adds nothing by itself. Left out are
code that runs in the server ($where, $function, $accumulator), writes in a pipeline ($out, $merge),
the server's own state ($currentOp, $collStats, …), and other collections ($lookup, $graphLookup,
$unionWith) unless the connection names them.
"""

from collections.abc import Collection, Mapping
from typing import Any

from bson import Code, DBRef, Regex

from tandem_worker.errors import TaskError

MAX_PATTERN = 1024  # characters of a regular expression
MAX_STAGES = 200  # of a pipeline, those inside of stages included
ANY = "*"  # as the name of a collection: every one

_QUERY = frozenset(
    "$eq $ne $gt $gte $lt $lte $in $nin $and $or $nor $not $exists $type $mod $regex $options $all $elemMatch $size"
    " $bitsAllClear $bitsAllSet $bitsAnyClear $bitsAnySet $geoWithin $geoIntersects $near $nearSphere $geometry"
    " $maxDistance $minDistance $box $center $centerSphere $polygon $text $search $language $caseSensitive"
    " $diacriticSensitive $comment $expr".split()
)
_EXPRESSION = frozenset(
    "$abs $acos $acosh $add $addToSet $allElementsTrue $and $anyElementTrue $arrayElemAt $arrayToObject $asin $asinh"
    " $atan $atan2 $atanh $avg $binarySize $bitAnd $bitNot $bitOr $bitXor $bottom $bottomN $bsonSize $ceil $cmp"
    " $concat $concatArrays $cond $convert $cos $cosh $count $covariancePop $covarianceSamp $dateAdd $dateDiff"
    " $dateFromParts $dateFromString $dateSubtract $dateToParts $dateToString $dateTrunc $dayOfMonth $dayOfWeek"
    " $dayOfYear $degreesToRadians $denseRank $derivative $divide $documentNumber $eq $exp $expMovingAvg $filter $first"
    " $firstN $floor $getField $gt $gte $hour $ifNull $in $indexOfArray $indexOfBytes $indexOfCP $integral $isArray"
    " $isNumber $isoDayOfWeek $isoWeek $isoWeekYear $last $lastN $let $linearFill $literal $ln $locf $log $log10 $lt"
    " $lte $ltrim $map $max $maxN $median $mergeObjects $meta $millisecond $min $minN $minute $mod $month $multiply $ne"
    " $not $objectToArray $or $percentile $pow $push $radiansToDegrees $rand $range $rank $reduce $regexFind"
    " $regexFindAll $regexMatch $replaceAll $replaceOne $reverseArray $round $rtrim $second $setDifference $setEquals"
    " $setField $setIntersection $setIsSubset $setUnion $shift $sin $sinh $size $slice $sortArray"
    " $split $sqrt $stdDevPop $stdDevSamp $strLenBytes $strLenCP $strcasecmp $substr $substrBytes $substrCP $subtract"
    " $sum $switch $tan $tanh $toBool $toDate $toDecimal $toDouble $toInt $toLong $toLower $toObjectId $toString"
    " $toUpper $top $topN $trim $trunc $tsIncrement $tsSecond $type $unsetField $week $year $zip".split()
)
_STAGES = frozenset(
    "$addFields $bucket $bucketAuto $count $densify $facet $fill $geoNear $graphLookup $group $limit $lookup $match"
    " $project $redact $replaceRoot $replaceWith $sample $set $setWindowFields $skip $sort $sortByCount $unionWith"
    " $unset $unwind".split()
)
_UPDATE_STAGES = frozenset("$addFields $project $replaceRoot $replaceWith $set $unset".split())
_UPDATE = frozenset(
    "$set $setOnInsert $unset $inc $mul $min $max $rename $currentDate $addToSet $push $pop $pull $pullAll $bit".split()
)
_MODIFIERS = {
    "$push": "$each $position $slice $sort",
    "$addToSet": "$each",
    "$currentDate": "$type",
}
_PLAIN: frozenset[str] = frozenset()


def check_collection(name: str) -> None:
    """Raises TaskError `forbidden_collection` for the server's own collections, and for Tandem's."""
    if (
        name.startswith("system.")
        or name == "tandem_applied"
        or "$" in name
        or "\0" in name
        or not name
    ):
        raise TaskError(
            "forbidden_collection",
            f"the collection {name[:100]!r} may not be used",
            retryable=False,
        )


def check_filter(filter: Any) -> None:
    """Raises TaskError `forbidden_operator`, which says what and where; likewise all below."""
    _walk(filter, _QUERY, "filter")


def check_projection(projection: Any) -> None:
    _walk(projection, _EXPRESSION | {"$elemMatch"}, "projection")


def check_document(document: Any, place: str = "document") -> None:
    """Documents hold no operators: a field whose name begins with `$` would be one to the next query that reads it."""
    _walk(document, _PLAIN, place, code=True)


def check_update(update: Any) -> None:
    """An update is an object of update operators, or a pipeline of the stages that updates may have."""
    if isinstance(update, list):
        for number, stage in enumerate(update):
            place = f"update/{number}"
            name, value = _only(stage, _UPDATE_STAGES, place)
            _walk(value, _EXPRESSION, f"{place}/{name}")
        return
    if not update:
        raise _refused("the update", "has no operator such as $set")
    for name, value in update.items():
        if name not in _UPDATE:
            raise _refused(f"update/{name}", "is no update operator that is allowed")
        allowed = _QUERY if name == "$pull" else frozenset(_MODIFIERS.get(name, "").split())
        _walk(value, allowed, f"update/{name}")


def check_pipeline(
    pipeline: list[Any], *, reach: Collection[str] = (), place: str = "pipeline", had: int = 0
) -> int:
    """Every stage, also those inside of stages. `reach`: other collections that $lookup and its like may read.

    The number of stages.
    """
    for number, stage in enumerate(pipeline):
        had += 1
        if had > MAX_STAGES:
            raise _refused(place, f"has more than {MAX_STAGES} stages")
        name, value = _only(stage, _STAGES, f"{place}/{number}")
        had = _check_stage(name, value, reach, f"{place}/{number}/{name}", had)
    return had


def _check_stage(name: str, value: Any, reach: Collection[str], place: str, had: int) -> int:
    if name == "$match":
        _walk(value, _QUERY, place)
    elif name == "$facet":
        for key, part in _object(value, place).items():
            _no_operator(key, place)
            had = check_pipeline(_list(part, place), reach=reach, place=f"{place}/{key}", had=had)
    elif name in ("$lookup", "$graphLookup", "$unionWith"):
        had = _check_other(name, value, reach, place, had)
    elif name == "$geoNear":
        near = dict(_object(value, place))
        _walk(near.pop("query", {}), _QUERY, f"{place}/query")
        _walk(near, _PLAIN, place)
    else:
        _walk(value, _EXPRESSION, place)
    return had


def _check_other(name: str, value: Any, reach: Collection[str], place: str, had: int) -> int:
    if name == "$unionWith" and isinstance(value, str):
        value = {"coll": value}
    rest = dict(_object(value, place))
    key = "coll" if name == "$unionWith" else "from"
    other = rest.pop(key, None)
    if not isinstance(
        other, str
    ):  # a $lookup without `from` reads $documents; an object names another database
        raise _refused(place, f"needs {key!r}, the name of a collection")
    check_collection(other)
    if other not in reach and ANY not in reach:
        raise _refused(
            place, f"reads the collection {other[:100]!r}, which this connection does not allow"
        )
    had = check_pipeline(
        _list(rest.pop("pipeline", []), place), reach=reach, place=f"{place}/pipeline", had=had
    )
    _walk(rest.pop("restrictSearchWithMatch", {}), _QUERY, f"{place}/restrictSearchWithMatch")
    _walk(rest, _EXPRESSION, place)
    return had


def _walk(value: Any, allowed: frozenset[str], place: str, *, code: bool = False) -> None:
    """Every key below `value`; operators that bring a language of their own are walked with its list.

    `code`: what is only stored may be JavaScript, a reference or a long text.
    """
    if isinstance(value, Mapping):
        for key, below in value.items():
            where = f"{place}/{key}"
            if key.startswith("$") and key not in allowed:
                raise _refused(where, "is not allowed")
            if "\0" in key:
                raise _refused(place, "has a field name with a zero byte")
            if not code and key in ("$regex", "regex") and isinstance(below, str):
                _check_pattern(below, where)
            language = {"$expr": _EXPRESSION, "$elemMatch": _QUERY}.get(key, allowed)
            _walk(below, language, where, code=code)
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            _walk(below, allowed, f"{place}/{number}", code=code)
    else:
        _check_value(value, place, code=code)


def _check_value(value: Any, place: str, *, code: bool) -> None:
    if isinstance(value, Regex):
        _check_pattern(value.pattern, place)
    elif isinstance(value, Code | DBRef) and not code:
        raise _refused(
            place,
            "is JavaScript"
            if isinstance(value, Code)
            else "is a reference, which only documents hold",
        )


def _check_pattern(pattern: Any, place: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise _refused(place, f"is a regular expression of more than {MAX_PATTERN} characters")


def _only(stage: Any, allowed: frozenset[str], place: str) -> tuple[str, Any]:
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise _refused(place, "is no stage: an object with one key")
    ((name, value),) = stage.items()
    if name not in allowed:
        raise _refused(f"{place}/{name}", "is no stage that is allowed")
    return name, value


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(place, "is no object")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _refused(place, "is no list of stages")
    return value


def _no_operator(key: str, place: str) -> None:
    if key.startswith("$"):
        raise _refused(f"{place}/{key}", "is not allowed")


def _refused(place: str, why: str) -> TaskError:
    return TaskError("forbidden_operator", f"{place[:200]} {why}", retryable=False)
