"""What clients may ask of MongoDB: allow-lists of operators and stages, for keys at every depth.

Everything else is refused, so that a new server version does not add anything by itself. Left out
are code that runs in the server ($where, $function, $accumulator), writes in a pipeline ($out,
$merge), the server's own state ($currentOp, $collStats, …), and other collections ($lookup,
$graphLookup, $unionWith) unless the connection lists them.
"""

from collections.abc import Collection, Mapping
from typing import Any

from bson import Code, DBRef, Regex

from tandem_worker.errors import Permanent

MAX_PATTERN_CHARS = 1024  # of a regular expression
MAX_STAGES = 200  # of a pipeline, including those inside other stages
ANY = "*"  # in place of a collection's name: all of them

_QUERY = frozenset(
    "$eq $ne $gt $gte $lt $lte $in $nin $and $or $nor $not $exists $type $mod $regex $options"
    " $all $elemMatch $size $bitsAllClear $bitsAllSet $bitsAnyClear $bitsAnySet $geoWithin"
    " $geoIntersects $near $nearSphere $geometry $maxDistance $minDistance $box $center"
    " $centerSphere $polygon $text $search $language $caseSensitive $diacriticSensitive"
    " $comment $expr".split()
)
_EXPRESSION = frozenset(
    "$abs $acos $acosh $add $addToSet $allElementsTrue $and $anyElementTrue $arrayElemAt"
    " $arrayToObject $asin $asinh $atan $atan2 $atanh $avg $binarySize $bitAnd $bitNot $bitOr"
    " $bitXor $bottom $bottomN $bsonSize $ceil $cmp $concat $concatArrays $cond $convert $cos"
    " $cosh $count $covariancePop $covarianceSamp $dateAdd $dateDiff $dateFromParts"
    " $dateFromString $dateSubtract $dateToParts $dateToString $dateTrunc $dayOfMonth"
    " $dayOfWeek $dayOfYear $degreesToRadians $denseRank $derivative $divide $documentNumber"
    " $eq $exp $expMovingAvg $filter $first $firstN $floor $getField $gt $gte $hour $ifNull"
    " $in $indexOfArray $indexOfBytes $indexOfCP $integral $isArray $isNumber $isoDayOfWeek"
    " $isoWeek $isoWeekYear $last $lastN $let $linearFill $literal $ln $locf $log $log10 $lt"
    " $lte $ltrim $map $max $maxN $median $mergeObjects $meta $millisecond $min $minN $minute"
    " $mod $month $multiply $ne $not $objectToArray $or $percentile $pow $push"
    " $radiansToDegrees $rand $range $rank $reduce $regexFind $regexFindAll $regexMatch"
    " $replaceAll $replaceOne $reverseArray $round $rtrim $second $setDifference $setEquals"
    " $setField $setIntersection $setIsSubset $setUnion $shift $sin $sinh $size $slice"
    " $sortArray $split $sqrt $stdDevPop $stdDevSamp $strLenBytes $strLenCP $strcasecmp"
    " $substr $substrBytes $substrCP $subtract $sum $switch $tan $tanh $toBool $toDate"
    " $toDecimal $toDouble $toInt $toLong $toLower $toObjectId $toString $toUpper $top $topN"
    " $trim $trunc $tsIncrement $tsSecond $type $unsetField $week $year $zip".split()
)
_STAGES = frozenset(
    "$addFields $bucket $bucketAuto $count $densify $facet $fill $geoNear $graphLookup $group"
    " $limit $lookup $match $project $redact $replaceRoot $replaceWith $sample $set"
    " $setWindowFields $skip $sort $sortByCount $unionWith $unset $unwind".split()
)
_UPDATE_STAGES = frozenset("$addFields $project $replaceRoot $replaceWith $set $unset".split())
_UPDATE = frozenset(
    "$set $setOnInsert $unset $inc $mul $min $max $rename $currentDate $addToSet $push $pop"
    " $pull $pullAll $bit".split()
)
_MODIFIERS = {
    "$push": "$each $position $slice $sort",
    "$addToSet": "$each",
    "$currentDate": "$type",
}
_NO_OPERATORS: frozenset[str] = frozenset()


def check_collection(name: str) -> None:
    """Raises Permanent `forbidden_collection` for collections of the server and of Tandem."""
    reserved = name.startswith("system.") or name == "tandem_applied"
    if reserved or not name or "$" in name or "\0" in name:
        message = f"tasks may not use the collection {name[:100]!r}"
        raise Permanent("forbidden_collection", message)


def check_filter(filter: Any) -> None:
    """Raises Permanent `forbidden_operator`, which names the operator and its place."""
    _walk(filter, _QUERY, "filter")


def check_projection(projection: Any) -> None:
    """Raises Permanent `forbidden_operator`."""
    _walk(projection, _EXPRESSION | {"$elemMatch"}, "projection")


def check_document(document: Any, place: str = "document") -> None:
    """Raises Permanent `forbidden_operator` for `$` fields, which queries take for operators."""
    _walk(document, _NO_OPERATORS, place, code=True)


def check_update(update: Any) -> None:
    """Raises Permanent unless it is an object of update operators or a pipeline of their stages."""
    if isinstance(update, list):
        for number, stage in enumerate(update):
            place = f"update/{number}"
            name, value = _only(stage, _UPDATE_STAGES, place)
            _walk(value, _EXPRESSION, f"{place}/{name}")
        return
    if not update:
        raise _refused("the update", "is empty: give an operator such as $set")
    for name, value in update.items():
        if name not in _UPDATE:
            raise _refused(f"update/{name}", "is not an allowed update operator")
        allowed = _QUERY if name == "$pull" else frozenset(_MODIFIERS.get(name, "").split())
        _walk(value, allowed, f"update/{name}")


def check_pipeline(pipeline: list[Any], *, readable: Collection[str] = ()) -> None:
    """Check every stage, including those inside other stages. Raises Permanent.

    `readable` lists other collections that $lookup and similar stages may read.
    """
    _PipelineCheck(readable).check(pipeline, "pipeline")


class _PipelineCheck:
    """Counts the stages of one pipeline while it checks them."""

    def __init__(self, readable: Collection[str]) -> None:
        self._readable = readable
        self._stages = 0

    def check(self, stages: Any, place: str) -> None:
        if not isinstance(stages, list):
            raise _refused(place, "is not a list of stages")
        for number, stage in enumerate(stages):
            self._stages += 1
            if self._stages > MAX_STAGES:
                raise _refused(place, f"has more than {MAX_STAGES} stages")
            name, value = _only(stage, _STAGES, f"{place}/{number}")
            self._stage(name, value, f"{place}/{number}/{name}")

    def _stage(self, name: str, value: Any, place: str) -> None:
        if name == "$match":
            _walk(value, _QUERY, place)
        elif name == "$facet":
            for key, part in _object(value, place).items():
                if key.startswith("$"):
                    raise _refused(f"{place}/{key}", "is not allowed")
                self.check(part, f"{place}/{key}")
        elif name in ("$lookup", "$graphLookup", "$unionWith"):
            self._other_collection(name, value, place)
        elif name == "$geoNear":
            near = dict(_object(value, place))
            _walk(near.pop("query", {}), _QUERY, f"{place}/query")
            _walk(near, _NO_OPERATORS, place)
        else:
            _walk(value, _EXPRESSION, place)

    def _other_collection(self, name: str, value: Any, place: str) -> None:
        if name == "$unionWith" and isinstance(value, str):
            value = {"coll": value}
        rest = dict(_object(value, place))
        key = "coll" if name == "$unionWith" else "from"
        other = rest.pop(key, None)
        # A $lookup without `from` reads $documents; an object names another database.
        if not isinstance(other, str):
            raise _refused(place, f"needs {key!r}, the name of a collection")
        check_collection(other)
        if other not in self._readable and ANY not in self._readable:
            why = f"may not read the collection {other[:100]!r} through this connection"
            raise _refused(place, why)
        self.check(rest.pop("pipeline", []), f"{place}/pipeline")
        _walk(rest.pop("restrictSearchWithMatch", {}), _QUERY, f"{place}/restrictSearchWithMatch")
        _walk(rest, _EXPRESSION, place)


def _walk(value: Any, allowed: frozenset[str], place: str, *, code: bool = False) -> None:
    """Check every key below `value`; $expr and $elemMatch switch to the list of their language.

    With `code`, values that are only stored may be JavaScript, references or long patterns.
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
    elif isinstance(value, Code) and not code:
        raise _refused(place, "is JavaScript")
    elif isinstance(value, DBRef) and not code:
        raise _refused(place, "is a reference, which only documents may contain")


def _check_pattern(pattern: Any, place: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _refused(
            place, f"is a regular expression of more than {MAX_PATTERN_CHARS} characters"
        )


def _only(stage: Any, allowed: frozenset[str], place: str) -> tuple[str, Any]:
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise _refused(place, "is not a stage: give an object with one key")
    ((name, value),) = stage.items()
    if name not in allowed:
        raise _refused(f"{place}/{name}", "is not an allowed stage")
    return name, value


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(place, "is not an object")
    return value


def _refused(place: str, why: str) -> Permanent:
    return Permanent("forbidden_operator", f"{place[:200]} {why}")
