"""Names inside archives: which ones are refused, and which ones files get."""

import re
from typing import Literal

from tandem_shared.files.names import name_problem
from tandem_worker.jobs.files import FileRef

ArchiveFormat = Literal["zip", "tar", "tar.gz", "tar.zst"]

MAX_DEPTH = 32  # directories in a name
_DRIVE = re.compile(r"[A-Za-z]:")


def entry_names(sources: list[FileRef]) -> list[str]:
    """The files' names in an archive: their own, each used once. Files are as `stat` returns them.

    A name that could not be unpacked becomes its last part or, failing that, `file`; the second
    file with the same name is `name-2.csv`.
    """
    names: list[str] = []
    taken, folders = set[str](), set[str]()
    for source in sources:
        name = source.name or source.file.rpartition("/")[2]
        if entry_problem(name) is not None or not taken.isdisjoint(parents(name)):
            name = re.split(r"[/\\]", name)[-1]
            name = "file" if entry_problem(name) is not None else name
        path, slash, last = name.rpartition("/")
        stem, dot, extension = last.rpartition(".") if "." in last[1:] else (last, "", "")
        number = 1
        while name in taken or name in folders:
            number += 1
            name = f"{path}{slash}{stem}-{number}{dot}{extension}"
        names.append(name)
        taken.add(name)
        folders |= parents(name)
    return names


def entry_problem(name: str) -> str | None:
    """Why an entry with this name is refused, or None."""
    if _DRIVE.match(name):
        return "has an absolute path"
    if name.count("/") >= MAX_DEPTH:
        return f"is more than {MAX_DEPTH} directories deep"
    return name_problem(name)


def parents(name: str) -> set[str]:
    """The directories that the name implies."""
    return {name[:end] for end, letter in enumerate(name) if letter == "/"}
