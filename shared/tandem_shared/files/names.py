"""File names: which are invalid, and under which paths the store keeps files."""

import re
from urllib.parse import quote

OCTET_STREAM = "application/octet-stream"  # the media type of a file whose type is not known
MAX_NAME_BYTES = 700  # of a produced file: an S3 key holds 1024, the job's folder included
MAX_PART_BYTES = 200  # between two slashes: a file system allows 255

_INVALID = re.compile(r"[\x00-\x1f\x7f\\]")


def content_disposition(name: str) -> str:
    """The header (RFC 6266) for the last part of the name; if needed also in full (RFC 8187)."""
    last = name.rpartition("/")[2]
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", last)
    extended = f"; filename*=UTF-8''{quote(last, safe='')}" if plain != last else ""
    return f'attachment; filename="{plain}"{extended}'


def job_folder(job: str) -> str:
    """The prefix of everything that a job has written."""
    return f"jobs/{job}"


def job_path(job: str, stamp: int, name: str) -> str:
    """The path of a file that the attempt claimed at `stamp` produced; `name` must be valid."""
    return f"{job_folder(job)}/{stamp}/{_escape(name)}"


def _escape(name: str) -> str:
    # The local store marks its temporary files with '#' and digits at the end.
    return name.replace("%", "%25").replace("#", "%23")


def name_problem(name: str) -> str | None:
    """Why a job cannot give a file this name, as the rest of a sentence; None for a valid name."""
    try:
        size = len(_escape(name).encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if size > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if _INVALID.search(name):
        return "has a control character or a backslash"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "is empty or absolute, or has an empty part, '.' or '..'"
        if len(_escape(part).encode()) > MAX_PART_BYTES:
            return f"has a part longer than {MAX_PART_BYTES} bytes"
    return None
