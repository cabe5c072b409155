"""Names of files: what is refused, and the paths under which the store keeps them."""

import re
from urllib.parse import quote

OCTET_STREAM = "application/octet-stream"  # the media type of a file whose type is not known
MAX_NAME_BYTES = 700  # of a produced file's name: an S3 key has 1024


MAX_PART_BYTES = 200  # between two slashes: a file system has 255


_REFUSED = re.compile(r"[\x00-\x1f\x7f\\]")


def content_disposition(name: str) -> str:
    """A Content-Disposition (RFC 6266): the name's last part, plain and, where that loses some, in full (RFC 8187)."""
    last = name.rpartition("/")[2]
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", last)
    return f'attachment; filename="{plain}"' + (
        f"; filename*=UTF-8''{quote(last, safe='')}" if plain != last else ""
    )


def job_path(job: str, stamp: int, name: str) -> str:
    """Where the file `name` (a valid one, see `refuse_name`) of the attempt claimed at `stamp` is."""
    return f"{job_folder(job)}/{stamp}/{_spelt(name)}"


def job_folder(job: str) -> str:
    """Where all that a job has written is."""
    return f"jobs/{job}"


def _spelt(name: str) -> str:
    # A '#' and digits at the end is how the local store marks its temporaries.
    return name.replace("%", "%25").replace("#", "%23")


def name_problem(name: str) -> str | None:
    """Why a file that a job produces cannot be called so; None for a valid name. It may have parts between slashes."""
    try:
        size = len(_spelt(name).encode())
    except UnicodeEncodeError:
        return "is no valid text"
    if size > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if _REFUSED.search(name):
        return "has a control character or a backslash"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "is empty or absolute, or has an empty part, '.' or '..'"
        if len(_spelt(part).encode()) > MAX_PART_BYTES:
            return f"has a part longer than {MAX_PART_BYTES} bytes"
    return None
