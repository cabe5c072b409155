"""Names inside archives: which entry names are refused, and how deep an archive may nest."""

import re
from collections.abc import Callable
from typing import Literal

from tandem_shared.files.names import name_problem
from tandem_worker.jobs.files import FileRef

Format = Literal["zip", "tar", "tar.gz", "tar.zst"]


Progress = Callable[[int], None]  # told how many bytes of the sources were read so far


DEPTH = 32  # parts of a name


_DRIVE = re.compile(r"[A-Za-z]:")


def entry_names(sources: list[FileRef]) -> list[str]:
    """What the files (as `stat` gives them) are called in an archive: their own names, each once.

    A name that no file could be unpacked to becomes its last part or, failing that, `file`; of the
    second file of a name it is `name-2.csv`.
    """
    names: list[str] = []
    taken, folders = set[str](), set[str]()
    for source in sources:
        name = source.name or source.file.rpartition("/")[2]
        if _refuse(name) is not None or not taken.isdisjoint(_parents(name)):
            name = re.split(r"[/\\]", name)[-1]
            name = "file" if _refuse(name) is not None else name
        path, slash, last = name.rpartition("/")
        stem, dot, ending = last.rpartition(".") if "." in last[1:] else (last, "", "")
        number = 1
        while name in taken or name in folders:
            number += 1
            name = f"{path}{slash}{stem}-{number}{dot}{ending}"
        names.append(name)
        taken.add(name)
        folders |= _parents(name)
    return names


def _refuse(name: str) -> str | None:
    if _DRIVE.match(name):
        return "has an absolute path"
    if name.count("/") >= DEPTH:
        return f"is more than {DEPTH} directories deep"
    return name_problem(name)


def _parents(name: str) -> set[str]:
    return {name[:end] for end, letter in enumerate(name) if letter == "/"}
