"""Which of Python's codecs are charsets of text."""

import codecs

# They are for host names and source code, or raise whatever the bytes are.
_NOT_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})


def charset(name: str) -> str:
    """Python's name for the charset. Raises LookupError if it is unknown."""
    try:
        "".encode(name)  # refuses codecs that do not encode text, such as rot13
        found = codecs.lookup(name).name
    except ValueError:  # a NUL, or a codec's own refusal
        raise LookupError(name) from None
    if found in _NOT_CHARSETS:
        raise LookupError(name)
    return found
